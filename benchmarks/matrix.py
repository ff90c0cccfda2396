"""What the engine does with every model family, kind of adapter, request and quantisation: docs/evidence/matrix.md.

Each case is a tiny random model with an adapter whose B is not zero. The product answers as in a sweep (the shared pass
where rules and check allow it) and as for the evaluated split; the harness's own answers are the oracle.

    python -m benchmarks.matrix                      # all cases that are not in the work file yet, then the table
    python -m benchmarks.matrix --only families/opt  # cases whose key begins so, done again
    python -m benchmarks.matrix --only stops         # a whole table
    python -m benchmarks.matrix --part 0/2           # every second case; another command does the others, into one file
    python -m benchmarks.matrix --table              # the table from the work file

A case runs in a process of its own with a limit of CPU seconds: a crash costs one row. One line of JSON per case goes
to `--work`, so an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import resource
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.matrix_cases import Case, adapter_cases, family_cases, quantised_cases, request_cases, stop_cases
from benchmarks.matrix_identity import ANEW, SAME, identity_cases
from benchmarks.matrix_run import CRASH, HF_FAILS, LEFT_OUT, WRONG, quiet, run_case
from benchmarks.newest import section_of

ROOT = Path(__file__).parents[1]
SECONDS = 120
KINDS = {"generate_until": "generation", "loglikelihood": "log-likelihood", "loglikelihood_rolling": "rolling"}
TITLES = {
    "families": ("Model families", "family", "LoRA on"),
    "adapters": ("Kinds of adapters", "adapter", ""),
    "requests": ("Kinds of requests", "requests", ""),
    "stops": ("Kinds of ends", "end", "model"),
    "quantised": ("Quantised base models", "base", ""),
    "identity": ("Edits between two sweeps into one folder", "edit", ""),
}
Row = dict[str, Any]


def all_cases() -> list[Case]:
    """In the order of the tables."""
    return [*family_cases(), *adapter_cases(), *request_cases(), *stop_cases(), *quantised_cases(), *identity_cases()]


def run_all(cases: Iterable[Case], work: Path, seconds: int) -> None:
    """Run the cases that the work file does not have, one after another."""
    work.parent.mkdir(parents=True, exist_ok=True)
    done = read(work)
    for case in cases:
        if case.key in done:
            continue
        row = {"key": case.key, "group": case.group, "name": case.name, "detail": case.detail}
        row["outcomes"] = in_a_process(case, seconds)
        with work.open("a") as file:
            file.write(json.dumps(row) + "\n")
        said = {kind: outcome["what"] for kind, outcome in row["outcomes"].items()}
        print(f"{case.key}: {said}", flush=True)


def read(work: Path) -> dict[str, Row]:
    """Key of a case -> its last line."""
    if not work.exists():
        return {}
    rows = [json.loads(line) for line in work.read_text().splitlines()]
    return {row["key"]: row for row in rows}


def in_a_process(case: Case, seconds: int, start: str = "fork") -> dict[str, Any]:
    """The outcomes of a case by kind of request; a process that ends before it has any is a crash.

    Args:
        seconds: of the CPU, after which it is ended.
        start: a forked child has the libraries at no cost; one that is to use a GPU must come from a process that has
            not touched it, which `forkserver` keeps.
    """
    context: Any = multiprocessing.get_context(start)
    if start == "forkserver":
        context.set_forkserver_preload(["benchmarks.matrix_run"])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(case, seconds, there))
    process.start()
    there.close()
    try:
        found: dict[str, Any] = here.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        why = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        found = {"generate_until": {"what": CRASH, "why": f"the process ended: {why}"}}
    process.join()
    return found


def _child(case: Case, seconds: int, result: Connection) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    sys.stderr = open("/dev/null", "w")  # noqa: SIM115 - until the process ends
    # Tiny matrices are no work for several threads.
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, quiet():
        result.send(run_case(case, Path(folder)))


def table(rows: dict[str, Row], cases: list[Case]) -> str:
    """The page: counts, then a table for each group."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("transformers", "peft", "lm_eval", "torch"))
    parts = [_INTRO.format(versions=versions), _counts(rows, cases)]
    for group, (title, first, second) in TITLES.items():
        of_group = [rows[case.key] for case in cases if case.group == group and case.key in rows]
        if of_group:
            parts.append(f"## {title}\n\n{_table(of_group, first, second)}")
    return "\n".join(parts)


def _table(rows: list[Row], first: str, second: str) -> str:
    kinds = [kind for kind in (*KINDS, "evaluated") if any(kind in row["outcomes"] for row in rows)]
    merged: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        cells = [_cell(row["outcomes"].get(kind)) for kind in kinds]
        whys = dict.fromkeys(o["why"] for o in row["outcomes"].values() if o.get("why"))
        merged.setdefault((row["name"], *cells, "; ".join(map(_short, whys))), []).append(row["detail"])
    head = [first, *([second] if second else []), *(KINDS.get(kind, "evaluated split") for kind in kinds), "why"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (name, *cells), details in merged.items():
        shown = [name, *([", ".join(details)] if second else []), *cells]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def _cell(outcome: dict[str, Any] | None) -> str:
    if outcome is None:
        return ""
    if outcome.get("differ") and (outcome.get("largest", 0) > 1e-3 or outcome["what"] == WRONG):
        return f"{outcome['what']} ({outcome['differ']} of {outcome['compared']} within rounding)"
    return str(outcome["what"])


def _short(why: str) -> str:
    # Temporary folders have another name every time.
    text = re.sub(r"/\S+/adapter\b", "ADAPTER", " ".join(why.replace("|", "/").split()))
    return text if len(text) <= 140 else text[:139] + "…"


def _counts(rows: dict[str, Row], cases: list[Case]) -> str:
    lines = ["| | cases run | " + " | ".join(_OUTCOMES) + " |", "|" + "---|" * (len(_OUTCOMES) + 2)]
    for group, (title, _, _) in TITLES.items():
        of_group = [rows[case.key] for case in cases if case.group == group and case.key in rows]
        count = Counter(outcome["what"] for row in of_group for outcome in row["outcomes"].values())
        if of_group:
            cells = [str(count[what]) for what in _OUTCOMES]
            lines.append(
                f"| {title} | {len(of_group)} of {sum(case.group == group for case in cases)} | "
                + " | ".join(cells)
                + " |"
            )
    return "\n".join(lines) + "\n"


_OUTCOMES = (
    "shared", "decoder", "plain by rule", "plain by check", "plain from a failure on", ANEW, SAME, "refused", HF_FAILS,
    LEFT_OUT, WRONG, CRASH,
)  # fmt: skip
_INTRO = """# What the engine does with which model, adapter and request

Made by `python -m benchmarks.matrix` with {versions},
on a CPU: tiny random models, adapters whose B is not zero, in fp32 unless the row says otherwise. Boundaries from the
full adapter to none of it are answered as in a sweep, two of them as for the evaluated split. Every answer is compared
with the harness's own at batch size 1: `HFLM` with the adapter as PEFT loads it, `HFLM` within PEFT's
`disable_adapter`, and one boundary after another between them.

| word | meaning |
|---|---|
| shared | all boundaries at once, every answer equal |
| decoder | (evaluated split) the engine's own decoding loop, every answer equal |
| plain by rule | plain pass (evaluated split: `HFLM.generate_until`) because a rule says so beforehand |
| plain by check | the same because the check before trust found a difference or a failure |
| plain from a failure on | the shared pass failed in the middle; the plain pass answered the rest |
| asked anew | after an edit between two sweeps into one folder, no answer of before it is reused |
| no answer changes | the same, and the edit changes none of these answers |
| refused | an error that says the rule and the way out |
| hf fails | `--model hf` cannot answer it either |
| left out | Transformers or PEFT cannot make the tiny model or its adapter |
| WRONG, CRASH | a fault of this project where `--model hf` answers; there must be none |

With other versions nothing was wrong either. The lowest that are asked for (Python 3.10, torch 2.6.0, transformers
4.57.1, peft 0.17.0, accelerate 1.0.0): adapters, requests, ends and edits (152 cases), and families on an earlier day,
more of them plain by check, because there the older BERTs look ahead and experts are handed some of the tokens each.
transformers 5.23.0: the same 152 cases, the rest on an earlier day. transformers 5.17.0, on a GPU too:
[performance](performance.md).

"Equal" is equal text (or a parting at a near tie of the model's own logits), and log-likelihoods to 2e-4 of their size;
on a quantised base to 0.05 of it, because its kernels round anew for another shape of the batch.
"""


def _part(text: str) -> slice:
    """`0/2` as every second, beginning with the first."""
    first, _, step = text.partition("/")
    if not (first.isdigit() and step.isdigit() and int(first) < int(step)):
        raise argparse.ArgumentTypeError(f"must be I/N with I from 0 to N - 1, e.g. 0/2, got {text!r}")
    return slice(int(first), None, int(step))


def main() -> None:
    """Run what is lacking and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "matrix.jsonl")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "evidence" / "matrix.md")
    parser.add_argument(
        "--only", nargs="+", help="run the cases whose key begins so, whether done or not, and write no page"
    )
    parser.add_argument("--part", type=_part, metavar="I/N", help="run every N-th case from the I-th on, write no page")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="CPU seconds for a case")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = all_cases()
    if args.only:
        chosen = [case for case in cases if case.key.startswith(tuple(args.only))]
        again = {case.key for case in chosen}
        kept = [json.dumps(row) for key, row in read(args.work).items() if key not in again]
        args.work.parent.mkdir(parents=True, exist_ok=True)
        args.work.write_text("".join(line + "\n" for line in kept))
        run_all(chosen, args.work, args.seconds)
        return
    if args.part:
        run_all(cases[args.part], args.work, args.seconds)
        return
    if not args.table:
        run_all(cases, args.work, args.seconds)
    rows = read(args.work)
    # The other program's part of the page stays.
    args.page.write_text(f"{table(rows, cases)}\n{section_of(args.page)}".rstrip() + "\n")
    bad = [key for key, row in rows.items() if any(o["what"] in (WRONG, CRASH) for o in row["outcomes"].values())]
    sys.exit(f"wrong or crashed: {', '.join(bad)}" if bad else 0)


if __name__ == "__main__":
    main()
