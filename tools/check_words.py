"""Checks texts for words that have a technical term in their place, for the spelling of options, and for headings.

    python tools/check_words.py            # prints what it found, a line each; exit status 1 if anything

Read are the prose of every page (without code), the texts and outputs of every notebook, and the string literals and
docstrings of the package and of the programs that make the tables and figures of pages.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from lm_eval_lora_drop.commands.main import make_parser

ROOT = Path(__file__).parents[1]
SOURCES = [ROOT / name for name in ("lm_eval_lora_drop", "benchmarks", "configs", "demo", "tasks")]
WORDS = {
    r"whole adapters?|the whole of (?:it|them|an adapter)": "full adapter",
    r"no layer of it": "base model",
    r"(?:cannot|can) be told|told from|tells? itself|(?:in|not )distinguishable": "not significant, inconclusive",
    r"hold for all candidates together|what holds for": "simultaneous 95 % band",
    r"would do: kept|bounds? (?:is|are) kept": "threshold met",
    r"is left to|left to HFLM|one (?:candidate|variant|boundary) at a time": "fall back, plain pass",
    r"what is rounding": "tolerance",
    r"(?:not|never) asked again|recalled": "reused, cached",
    r"hopeless|spared|retired by": "skipped by the likelihood pre-filter",
    r"gave up|given up|was retired": "eliminated, stopped",
    r"so many|so-many": "the number itself, n",
    r"(?-i:(?<!there )\bis none\b(?! of))": "is not a ...",
    r"refused with": "rejected, with",
    r"\bflatter(?:s|ing)?\b": "optimistically biased",
    r"\bwhoever\b": "name the subject",
    r"nothing is said": "name the subject",
    r"goes by\b": "uses",
    r"\bregret\b": "mean loss against the best candidate",
    r"goes on (?:from|where)": "resumes",
}
"""What is not written, and what is written for it."""
SOURCES_SKIPPED = (
    "evidence/matrix.md",
    "evidence/simulations.md",
    "evidence/task-examples.md",
    "reference/model_args.md",
)
"""Generated pages and appendices of tables: their words are those of the programs that print them."""
NAMES = {"retired_after", "hopeless"}
"""Fields of the record and modules, which keep their name."""
OUTPUTS = ("text/plain", "text/html")
"""What is read of a cell's output."""
HARNESS_ONLY = re.compile(r"--[a-z]+_[a-z_]+")


def prose(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a page that are neither code nor quoted code, with their numbers."""
    fence = False
    for number, line in enumerate(text.split("\n"), 1):
        if line.lstrip().startswith("```"):
            fence = not fence
        elif not fence and not line.startswith("    "):
            yield number, re.sub(r"`[^`]*`", "`", line)


def literals(source: str) -> Iterator[tuple[int, str]]:
    """The texts of a module: string literals with a space in them, docstrings included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            for place, line in enumerate(re.sub(r"`[^`]*`", "`", node.value).split("\n")):
                yield node.lineno + place, line


def notebook(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a notebook's texts and outputs, with the numbers of their cells."""
    for number, cell in enumerate(json.loads(text)["cells"], 1):
        shown = [cell["source"]] if cell["cell_type"] == "markdown" else []
        for output in cell.get("outputs", ()):
            shown += [output.get("text", ""), *(output.get("data", {}).get(kind, "") for kind in OUTPUTS)]
        for lines in shown:
            yield from ((number, line) for line in "".join(lines).split("\n"))


def wrong_words(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """What is wrong in each line, by line number. A phrase broken over two lines is found too."""
    before = ""
    for number, line in lines:
        joined = f"{before} {line.strip()}"
        for pattern, instead in WORDS.items():
            for found in re.finditer(pattern, joined, re.IGNORECASE):
                if found.end() > len(before) and found[0] not in NAMES:
                    yield number, f"{found[0]!r}: write {instead}"
        before = line.strip()


def wrong_options(text: str) -> Iterator[tuple[int, str]]:
    """Options of `lora-drop` that are written with underscores."""
    for number, line in enumerate(text.split("\n"), 1):
        command = line.partition("lora-drop ")[2]
        if command and not line.lstrip().startswith(("lm_eval", "accelerate")) and "--model hf" not in line:
            for found in HARNESS_ONLY.finditer(command):
                yield number, f"{found[0]}: write {found[0].replace('_', '-')}"


def wrong_headings(text: str) -> Iterator[tuple[int, str]]:
    """A page has one title; a heading has no full stop and skips no level."""
    level = 0
    titles = 0
    for number, line in prose(text):
        found = re.match(r"(#+) (.*)", line)
        if found is None:
            continue
        titles += len(found[1]) == 1
        if len(found[1]) > level + 1:
            yield number, f"heading of level {len(found[1])} below level {level}"
        if found[2].endswith((".", ":")):
            yield number, "heading with a full stop or colon"
        level = len(found[1])
    if titles != 1:
        yield 1, f"{titles} titles (# ...) on one page"


def underscored_options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Options of a parser and those below it that have no spelling with hyphens."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for deeper in action.choices.values():
                yield from underscored_options(deeper)
        elif action.option_strings and all("_" in flag for flag in action.option_strings):
            yield f"{parser.prog} {action.option_strings[0]}"


def pages() -> list[Path]:
    """The pages that are read."""
    docs = [
        page
        for page in (ROOT / "docs").rglob("*.md")
        if page.relative_to(ROOT / "docs").as_posix() not in SOURCES_SKIPPED
    ]
    top = (ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"))
    beside = [page for folder in ("benchmarks", "configs", "demo", "tasks") for page in (ROOT / folder).rglob("*.md")]
    return [*top, *sorted(docs), *sorted(beside)]


def main() -> int:
    """Print what is wrong; 1 if anything is."""
    found = [f"{flag} has no spelling with hyphens" for flag in underscored_options(make_parser())]
    for page in pages():
        text = page.read_text(encoding="utf-8")
        for number, problem in [*wrong_words(prose(text)), *wrong_options(text), *wrong_headings(text)]:
            found.append(f"{page.relative_to(ROOT)}:{number}: {problem}")
    for book in sorted((ROOT / "docs").rglob("*.ipynb")):
        for number, problem in wrong_words(notebook(book.read_text(encoding="utf-8"))):
            found.append(f"{book.relative_to(ROOT)}: cell {number}: {problem}")
    for file in sorted(file for folder in SOURCES for file in folder.rglob("*.py")):
        for number, problem in wrong_words(literals(file.read_text(encoding="utf-8"))):
            found.append(f"{file.relative_to(ROOT)}:{number}: {problem}")
    print("\n".join(found) or "words: nothing found")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
