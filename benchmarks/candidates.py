"""What every set of candidates chooses and what that scores: the tables of docs/evidence/candidates.md.

    lora-drop study --config configs/studies/candidates_demo.yaml
    python -m benchmarks.candidates configs/studies/candidates_*.yaml --write docs/evidence/candidates

Reads studies that were run with one adapter, one task, and a sweep for every set. Each choice stands with its score
on the validation documents that chose it, the score to expect on new ones (sweep/trust.py), and its score on the
test documents, whose paired differences to the full adapter and to what the sweep over boundaries chose have 95 %
intervals; p is corrected over the sets of a table (Holm).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_lora_drop.files import write_atomically
from lm_eval_lora_drop.record.plain import plain
from lm_eval_lora_drop.record.schema import TaskRecord
from lm_eval_lora_drop.show.figures.claims import Bar, claims_figure
from lm_eval_lora_drop.show.figures.style import save_figure, shorten
from lm_eval_lora_drop.statistics.significance import LEVEL, PairedTest, holm, mean_test
from lm_eval_lora_drop.study.config import read_study
from lm_eval_lora_drop.study.evidence import Arm, arms
from lm_eval_lora_drop.sweep.recorded import RecordedSweep
from lm_eval_lora_drop.sweep.trust import trust
from lm_eval_lora_drop.text import decimals_of_column, number, with_error

CANDIDATE_SET = "sweep_candidates="
BOUNDARIES = "auto"


@dataclass(frozen=True)
class Row:
    """One set: what it tried and chose, and the scores. `test` over the test documents, with its standard error;
    `to_full`, `to_boundary`: None where the choice is the same."""

    candidate_set: str
    candidates: int
    kept: str
    share: float
    validation: float | None
    expected: float | None
    test: float
    stderr: float
    to_full: PairedTest | None
    to_boundary: PairedTest | None

    def to_json(self) -> dict[str, Any]:
        """For the file beside the page."""
        tests = {
            name: None if (test := getattr(self, name)) is None else vars(test) for name in ("to_full", "to_boundary")
        }
        return plain({**vars(self), **tests})


def rows_of(found: list[Arm]) -> list[Row]:
    """The rows of one study, in its order; `full` and `base` among them, the base model without tests."""
    by_choice = {arm.choice: arm for arm in found}
    full, boundary = by_choice["full"], by_choice[BOUNDARIES]
    metric = full.metrics[0]
    rows = []
    for arm in found:
        (run,) = arm.runs
        record = run.record
        assert record is not None
        values = arm.values(*metric)[0]
        sweep = record.sweep
        known = None if sweep is None else trust(RecordedSweep.from_record(record))
        rows.append(
            Row(
                candidate_set=_name(arm),
                candidates=len(sweep.candidates) if sweep else 1,
                kept=record.kept.label,
                share=record.kept_parameters / (record.kept_parameters + record.dropped_parameters),
                validation=None if known is None else known.apparent,
                expected=None if known is None else known.corrected,
                test=float(values.mean()),
                stderr=float(values.std(ddof=1) / np.sqrt(len(values))),
                to_full=_against(full, arm, metric),
                to_boundary=_against(boundary, arm, metric),
            )
        )
    return rows


def _name(arm: Arm) -> str:
    return "boundary" if arm.choice == BOUNDARIES else arm.choice.removeprefix(CANDIDATE_SET)


def _record(arm: Arm) -> TaskRecord:
    (record,) = arm.records
    return record


def _against(baseline: Arm, arm: Arm, metric: tuple[str, str]) -> PairedTest | None:
    if _record(arm).variant == _record(baseline).variant:
        return None
    return mean_test(baseline.values(*metric)[0], arm.values(*metric)[0])


def corrected(rows: list[Row]) -> dict[str, float]:
    """Set -> p of its difference to the full adapter, over all sets that chose something else (Holm)."""
    tests = {row.candidate_set: row.to_full for row in rows if row.validation is not None and row.to_full is not None}
    return dict(zip(tests, holm([test.p_value for test in tests.values()]), strict=True))


def bars(rows: list[Row], where: str) -> list[Bar]:
    """The same for a figure."""
    found = []
    p_values = corrected(rows)
    for row in rows:
        if row.candidate_set in p_values and row.to_full is not None:
            told = p_values[row.candidate_set] < LEVEL
            outcome = ("holds" if row.to_full.difference > 0 else "worse") if told else "open"
            label = f"{row.candidate_set}: {shorten(row.kept, 24)}"
            found.append(Bar(label, where, row.to_full.difference, row.to_full.interval, outcome))
    return found


def table(rows: list[Row]) -> str:
    """Markdown, one line a set."""
    decimals = decimals_of_column((row.test, row.stderr) for row in rows)
    p_values = corrected(rows)
    head = [
        *("set", "candidates", "chosen", "parameters", "validation", "expected", "test"),
        *("to full, 95 %", "p (Holm)", "to the boundary, 95 %"),
    ]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        p = p_values.get(row.candidate_set)
        cells = [
            row.candidate_set,
            str(row.candidates) if row.validation is not None else "",
            f"`{shorten(row.kept, 40)}`",
            f"{row.share:.0%}",
            "" if row.validation is None else number(row.validation, decimals),
            "" if row.expected is None else number(row.expected, decimals),
            with_error(row.test, row.stderr, decimals),
            _difference(row.to_full, decimals),
            "" if p is None else f"{p:.2g}",
            _difference(row.to_boundary, decimals),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _difference(test: PairedTest | None, decimals: int) -> str:
    if test is None:
        return "the same"
    low, high = (number(value, decimals, sign=True) for value in test.interval)
    return f"{number(test.difference, decimals, sign=True)} ({low} to {high})"


def main() -> None:
    """Print a table for each study, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", type=Path, nargs="+", metavar="STUDY")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="where the one study named was run, if not where it says"
    )
    parser.add_argument(
        "--write", type=Path, metavar="FOLDER", help="where the tables are kept as JSON, and their figure"
    )
    args = parser.parse_args()
    if args.output and len(args.configs) > 1:
        parser.error("--output goes with one study")
    drawn: list[Bar] = []
    for config in args.configs:
        found = list(arms(read_study(config, args.output)))
        rows = rows_of(found)
        drawn += bars(rows, f"{found[0].metrics[0][0]}, {found[0].task.name}")
        print(f"\n{config.stem}\n\n{table(rows)}")
        if args.write:
            write_atomically(
                args.write / f"{config.stem}.json", json.dumps([row.to_json() for row in rows], indent=1) + "\n"
            )
    if args.write and drawn:
        save_figure(claims_figure(drawn, "better than full"), args.write / "candidates", ["png"])


if __name__ == "__main__":
    main()
