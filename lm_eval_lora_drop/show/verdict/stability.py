"""`lora-drop stability RUN`: how far a sweep's choice can be trusted, from its recorded scores, without the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.find import find_runs
from lm_eval_lora_drop.record.runs import Issue, Run
from lm_eval_lora_drop.record.schema import SweepRecord, TaskRecord
from lm_eval_lora_drop.show.tables import paragraph, table
from lm_eval_lora_drop.show.verdict.sweep_text import sweep_decimals, verdict
from lm_eval_lora_drop.sweep.recorded import RecordedSweep
from lm_eval_lora_drop.sweep.trust import SubsetStability, Trust, stability, trust
from lm_eval_lora_drop.text import number, percent
from lm_eval_lora_drop.variant import Variant


@dataclass(frozen=True)
class Stability:
    """The bootstrap of one task's choice, and the choices on smaller validation sets; `print` shows both."""

    task: str
    record: TaskRecord
    trust: Trust
    sizes: tuple[SubsetStability, ...]
    path: Path | None = None
    """The results file."""

    @property
    def sweep(self) -> SweepRecord:
        """The sweep that was assessed."""
        assert self.record.sweep is not None
        return self.record.sweep

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {
            "file": str(self.path),
            "task": self.task,
            "metric": str(self.record.metric),
            "chosen": self.sweep.chosen,
            "num_layers": self.record.num_layers,
            "verdict": verdict(self.record),
            "trust": self.trust.to_json(),
            "sizes": [size.to_json() for size in self.sizes],
        }

    def __str__(self) -> str:
        decimals, label = sweep_decimals(self.sweep), self.record.kept.label
        head = f"Task {self.task}, {self.record.metric}, {label} of {self.record.num_layers} layers"
        parts = [*([str(self.path)] if self.path else []), head, "\n".join(map(paragraph, sentences(self)))]
        rows = [
            [
                str(size.documents),
                _shares(size.choice_share, shown=1),
                percent(size.same_choice),
                *(number(value, decimals) for value in (size.regret, size.regret_95, size.unseen)),
            ]
            for size in self.sizes
        ]
        if rows:
            headings = ["docs", "chosen (share)", "same\nchoice", "mean\nloss", "95 % of\nlosses", "unseen\nscore"]
            parts += [
                "The same choice on random subsets of the validation documents:",
                table(headings, rows, left=["chosen (share)"]),
                paragraph(
                    "mean loss: against the best candidate, on all documents. 95 % of losses: are at most this. unseen "
                    "score: of the choice, on the documents outside the subset."
                ),
            ]
        return "\n\n".join(parts)


def stabilities(
    paths: Sequence[Path], tasks: Sequence[str] = (), sizes: Sequence[int] | None = None, seed: int = 0
) -> tuple[list[Stability], list[Issue]]:
    """The stability of every sweep below `paths` (of `tasks` only, if given), and what was wrong with the files.

    Raises:
        ArgumentError: as `sweeps_in`; a size that is too large, or too few documents.
    """
    found, issues = sweeps_in(paths, tasks)
    return [assess(task, record, sizes, seed, run.path) for run, task, record in found], issues


def sweeps_in(
    paths: Sequence[Path], tasks: Sequence[str] = ()
) -> tuple[list[tuple[Run, str, TaskRecord]], list[Issue]]:
    """Run, task and record of every sweep below `paths` (of `tasks` only, if given), and what was wrong with the files.

    Raises:
        ArgumentError: no sweep there, or a task without one.
    """
    runs, issues = find_runs(paths)
    found = [(run, task, record) for run in runs for task, record in swept_tasks(run).items()]
    names = sorted({task for _, task, _ in found})
    unknown = [task for task in tasks if task not in names]
    if unknown or not found:
        there = f"There are sweeps of: {', '.join(names)}." if names else "Evaluate with boundary=auto."
        wrong = "".join(f" {issue}" for issue in issues[:3])
        raise ArgumentError(f"no sweep{' of ' + ', '.join(unknown) if unknown else ''} in these files. {there}{wrong}")
    return [one for one in found if not tasks or one[1] in tasks], issues


def swept_tasks(run: Run) -> dict[str, TaskRecord]:
    """The records of the tasks of a run whose variant was found by a sweep."""
    records = {name: task.record for name, task in run.tasks.items()}
    return {name: record for name, record in records.items() if record is not None and record.sweep is not None}


def assess(
    task: str, record: TaskRecord, sizes: Sequence[int] | None = None, seed: int = 0, path: Path | None = None
) -> Stability:
    """Resample the recorded scores of one task's sweep.

    Raises:
        ArgumentError: too few documents, no sweep, or an aggregation that only the task knows.
    """
    recorded = RecordedSweep.from_record(record)
    return Stability(task, record, trust(recorded, seed=seed), tuple(stability(recorded, sizes, seed=seed)), path)


def sentences(found: Stability) -> list[str]:
    """The bootstrap in words, the verdict first."""
    trusted, decimals = found.trust, sweep_decimals(found.sweep)
    chosen = found.record.kept
    share = trusted.choice_share.get(Variant.parse(found.sweep.chosen, found.record.num_layers), 0.0)
    said = [
        verdict(found.record),
        f"The same choice ({chosen.label}) in {percent(share)} of {trusted.resamples:,} resamples of the "
        f"{trusted.documents} validation documents. All choices: {_shares(trusted.choice_share)}.",
        f"Validation score {number(trusted.apparent, decimals)}, optimistically biased by "
        f"{number(trusted.optimism, decimals)}. Expected on new documents: {number(trusted.corrected, decimals)}.",
    ]
    if chosen.is_full or trusted.corrected_gain is None:
        return said
    gain = number(trusted.corrected_gain, decimals, sign=True)
    return [*said, f"Cross-validated gain over the full adapter: {gain}."]


def _shares(shares: Mapping[Variant, float], shown: int = 4) -> str:
    """`K = 27 (61 %), K = 25 (20 %), 3 others (19 %)`."""
    ranked = sorted(shares.items(), key=lambda pair: -pair[1])
    # One that is left over is named: "1 other" would be as long.
    named, others = (ranked, []) if len(ranked) <= shown + 1 else (ranked[:shown], ranked[shown:])
    parts = [f"{variant.label} ({percent(share)})" for variant, share in named]
    if others:
        parts.append(f"{len(others)} others ({percent(sum(share for _, share in others))})")
    return ", ".join(parts)
