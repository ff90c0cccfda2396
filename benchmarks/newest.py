"""The tests of models, engine, adapters and records with the newest release of every dependency, as a table.

    make test-newest                              # sets up .venv-newest without constraints and runs this in it
    make test-newest ARGS=tests/engine            # some of them, again
    .venv-newest/bin/python -m benchmarks.newest --page docs/evidence/matrix.md    # the table into the page

One file of tests after another, each in a process that imports the installed wheel; results of the same versions are
kept in out/newest, so that an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import subprocess
import sys
from collections import Counter
from datetime import date
from importlib.metadata import distributions, version
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
ROOMS = ("tests/engine", "tests/backends", "tests/adapter", "tests/record", "tests/harness/test_hooks.py")
HEADING = "## The newest release of every dependency"
_SHOWN = (
    "torch", "transformers", "peft", "lm_eval", "accelerate", "datasets", "huggingface_hub", "tokenizers",
    "safetensors", "trl", "numpy", "scipy", "statsmodels", "pandas", "sacrebleu", "matplotlib", "msgspec", "openai",
    "anthropic", "google-genai",
)  # fmt: skip
_COUNTS = ("tests", "failures", "errors", "skipped")


def section_of(page: Path) -> str:
    """The part of a page that this program has written, "" where there is none."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    found = re.search(rf"^{HEADING}\n.*?(?=^## |\Z)", text, re.M | re.S)
    return found[0] if found else ""


def _results() -> Path:
    """Where results with exactly these versions lie."""
    installed = sorted(f"{found.metadata['Name']}=={found.version}" for found in distributions())
    return ROOT / "out" / "newest" / hashlib.sha256("\n".join(installed).encode()).hexdigest()[:12]


def _run(file: Path, result: Path) -> bool:
    """Whether the tests of a file pass; their counts lie in `result`."""
    # Appended, so that the installed wheel is imported, not the folder of its source.
    command = [str(Path(sys.executable).with_name("pytest")), "--import-mode=append", f"--junitxml={result}", str(file)]
    print(f"$ pytest {file.relative_to(ROOT)}", flush=True)
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode == 0


def _counts(result: Path) -> Counter[str]:
    suites = list(ElementTree.parse(result).iter("testsuite"))
    return Counter({name: sum(int(suite.get(name, 0)) for suite in suites) for name in _COUNTS})


def _passed(result: Path) -> bool:
    counts = _counts(result) if result.is_file() else Counter()
    return counts["tests"] > 0 and not counts["failures"] + counts["errors"]


def _table(results: Path) -> str:
    counts: dict[str, Counter[str]] = {}
    for result in sorted(results.glob("*.xml")):
        room = next(room for room in ROOMS if result.stem.startswith(_stem(ROOT / room)))
        own = counts.setdefault(room, Counter())
        own["files"] += 1
        own.update(_counts(result))
    lines = [
        HEADING,
        "",
        f"`make test-newest` with what pip installed on {date.today()}, on a CPU: Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in _SHOWN)
        + ".",
        "",
        "| tests | files | passed | failed | skipped |",
        "|---|---|---|---|---|",
    ]
    for room in (room for room in ROOMS if room in counts):
        own = counts[room]
        failed = own["failures"] + own["errors"]
        passed = own["tests"] - failed - own["skipped"]
        lines.append(f"| `{room}` | {own['files']} of {len(_files(room))} | {passed} | {failed} | {own['skipped']} |")
    return "\n".join(lines) + "\n"


def _files(place: str) -> list[Path]:
    path = ROOT / place
    return sorted(path.rglob("test_*.py")) if path.is_dir() else [path]


def _stem(file: Path) -> str:
    return file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")


def main() -> int:
    """Run the tests that have not passed with these versions yet; 1 where any fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="*", help="files or folders of tests, run again (default: all that is lacking)")
    parser.add_argument("--page", type=Path, help="run nothing, write the table into this page")
    args = parser.parse_args()
    results = _results()
    if args.page:
        before = section_of(args.page)
        text = args.page.read_text(encoding="utf-8")
        table = _table(results)
        args.page.write_text(text.replace(before, table) if before else f"{text}\n{table}", encoding="utf-8")
        return 0
    failed = False
    for file in [file for place in args.places or ROOMS for file in _files(place)]:
        result = results / f"{_stem(file)}.xml"
        if args.places or not _passed(result):
            failed |= not _run(file.resolve(), result)
    print(_table(results), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
