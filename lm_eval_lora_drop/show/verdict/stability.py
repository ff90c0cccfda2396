"""`lora-drop stability RUN`: how far a sweep's choice can be trusted, from its recorded scores, without the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from lm_eval_lora_drop.record.runs import Run
from lm_eval_lora_drop.record.schema import SweepRecord, TaskRecord
from lm_eval_lora_drop.show.verdict.sweep_text import sweep_decimals, verdict
from lm_eval_lora_drop.sweep.recorded import RecordedSweep
from lm_eval_lora_drop.sweep.trust import SubsetStability, Trust, stability, trust
from lm_eval_lora_drop.text import number, percent
from lm_eval_lora_drop.variant import Variant


@dataclass(frozen=True)
class Stability:
    """The bootstrap of one task's choice, and the choices on smaller validation sets."""

    task: str
    record: TaskRecord
    trust: Trust
    sizes: tuple[SubsetStability, ...]

    @property
    def sweep(self) -> SweepRecord:
        """The sweep that was assessed."""
        assert self.record.sweep is not None
        return self.record.sweep

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {
            "task": self.task,
            "metric": str(self.record.metric),
            "chosen": self.sweep.chosen,
            "num_layers": self.record.num_layers,
            "verdict": verdict(self.record),
            "trust": self.trust.to_json(),
            "sizes": [size.to_json() for size in self.sizes],
        }


def swept_tasks(run: Run) -> dict[str, TaskRecord]:
    """The records of the tasks of a run whose variant was found by a sweep."""
    records = {name: task.record for name, task in run.tasks.items()}
    return {name: record for name, record in records.items() if record is not None and record.sweep is not None}


def assess(task: str, record: TaskRecord, sizes: Sequence[int] | None = None, seed: int = 0) -> Stability:
    """Resample the recorded scores of one task's sweep.

    Raises:
        ArgumentError: too few documents, no sweep, or an aggregation that only the task knows.
    """
    recorded = RecordedSweep.from_record(record)
    return Stability(task, record, trust(recorded, seed=seed), tuple(stability(recorded, sizes, seed=seed)))


def sentences(found: Stability) -> list[str]:
    """The bootstrap in words, the verdict first."""
    trusted, decimals = found.trust, sweep_decimals(found.sweep)
    chosen = found.record.kept
    share = trusted.choice_share.get(Variant.parse(found.sweep.chosen, found.record.num_layers), 0.0)
    said = [
        verdict(found.record),
        f"{chosen.label} is chosen in {percent(share)} of {trusted.resamples} resamples of the {trusted.documents} "
        f"validation documents; most often: {_shares(trusted.choice_share)}.",
        f"Its validation score is {number(trusted.apparent, decimals)}; on new documents expect about "
        f"{number(trusted.corrected, decimals)}, because the best of many looks better than it is "
        f"(by {number(trusted.optimism, decimals)}).",
    ]
    if chosen.is_full or trusted.corrected_gain is None:
        return said
    gain = number(trusted.corrected_gain, decimals, sign=True)
    return [*said, f"Chosen on some documents and scored on others, it gains {gain} on the full adapter."]


def render(found: Stability) -> str:
    """For the terminal."""
    decimals = sweep_decimals(found.sweep)
    rows = [
        [
            size.documents,
            _shares(size.choice_share),
            percent(size.same_choice),
            number(size.regret, decimals),
            number(size.regret_95, decimals),
            number(size.unseen, decimals),
        ]
        for size in found.sizes
    ]
    said = "\n".join(sentences(found))
    layers = found.record.num_layers
    head = f"Task {found.task}, {found.record.metric}, {found.record.kept.label} of {layers} layers\n\n{said}"
    if not rows:
        return head
    heads = ["documents", "chosen (share)", "same choice", "regret", "regret, 95 %", "score on the others"]
    table = tabulate(rows, heads, tablefmt="simple", disable_numparse=True)
    return (
        f"{head}\n\nThe same choice on random subsets of the validation documents:\n\n{table}\n\n"
        "regret: how much worse the choice is, on all documents, than the best candidate there."
    )


def _shares(shares: Mapping[Variant, float], shown: int = 4) -> str:
    """`K = 27 (61 %), K = 25 (20 %), 3 others (19 %)`."""
    ranked = sorted(shares.items(), key=lambda pair: -pair[1])
    # One that is left over is named: "1 other" would be as long.
    named, others = (ranked, []) if len(ranked) <= shown + 1 else (ranked[:shown], ranked[shown:])
    parts = [f"{variant.label} ({percent(share)})" for variant, share in named]
    if others:
        parts.append(f"{len(others)} others ({percent(sum(share for _, share in others))})")
    return ", ".join(parts)
