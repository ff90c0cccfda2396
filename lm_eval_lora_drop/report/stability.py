"""`lora-drop stability RUN`: how far a sweep's choice can be trusted, from its recorded scores, without the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tabulate import tabulate

from lm_eval_lora_drop.record.runs import Run
from lm_eval_lora_drop.record.schema import TaskRecord
from lm_eval_lora_drop.rounding import decimals_for, number, percent
from lm_eval_lora_drop.sweep.recorded import RecordedSweep
from lm_eval_lora_drop.sweep.trust import Size, Trust, stability, trust


@dataclass(frozen=True)
class Stability:
    """The bootstrap of one task's choice, and the choices on smaller validation sets."""

    task: str
    metric: str
    chosen: int
    num_layers: int
    trust: Trust
    sizes: tuple[Size, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self)


def swept_tasks(run: Run) -> dict[str, TaskRecord]:
    """The records of the tasks of a run whose variant was found by a sweep."""
    records = {name: task.record for name, task in run.tasks.items()}
    return {name: record for name, record in records.items() if record is not None and record.sweep is not None}


def assess(task: str, record: TaskRecord, sizes: Sequence[int] | None = None, seed: int = 0) -> Stability:
    """Resample the recorded scores of one task's sweep.

    Raises:
        ArgumentError: too few documents, or no sweep.
    """
    recorded = RecordedSweep.from_record(record)
    return Stability(
        task=task,
        metric=str(record.metric),
        chosen=recorded.chosen,
        num_layers=recorded.num_layers,
        trust=trust(recorded, seed=seed),
        sizes=tuple(stability(recorded, sizes, seed=seed)),
    )


def sentences(found: Stability) -> list[str]:
    """The bootstrap in words."""
    trusted = found.trust
    share = trusted.choice_share.get(found.chosen, 0.0)
    decimals = _decimals(trusted)
    said = [
        f"K = {found.chosen} is chosen in {percent(share)} of {trusted.resamples} resamples of the {trusted.documents} "
        f"validation documents; most often: {_shares(trusted.choice_share)}.",
        f"Its validation score is {number(trusted.apparent, decimals)}; on new documents expect about "
        f"{number(trusted.corrected, decimals)}, because the best of many looks better than it is "
        f"(by {number(trusted.optimism, decimals)}).",
    ]
    if found.chosen == found.num_layers:
        return [*said, "The whole adapter was chosen: there is no gain to ask for."]
    if trusted.better_than_full is None or trusted.corrected_gain is None or trusted.corrected_gain_interval is None:
        return [*said, "The whole adapter was not among the candidates, so nothing is said about a gain."]
    low, high = trusted.corrected_gain_interval
    return [
        *said,
        f"It beats the whole adapter in {percent(trusted.better_than_full)} of the resamples. Chosen on some documents "
        f"and scored on others, the gain is {number(trusted.corrected_gain, decimals, sign=True)} (95 % interval "
        f"{number(low, decimals, sign=True)} to {number(high, decimals, sign=True)}).",
    ]


def _decimals(trusted: Trust) -> int:
    """The interval is about four standard errors wide; without one the score's own size decides."""
    low, high = trusted.corrected_gain_interval or (0.0, 0.0)
    return decimals_for((high - low) / 4 or None, trusted.apparent)


def render(found: Stability) -> str:
    """For the terminal."""
    decimals = _decimals(found.trust)
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
    heads = ["documents", "chosen K (share)", "same choice", "regret", "regret, 95 %", "score on the others"]
    table = tabulate(rows, heads, tablefmt="simple", disable_numparse=True)
    said = "\n".join(sentences(found))
    return (
        f"Task {found.task}, {found.metric}, boundary {found.chosen} of {found.num_layers}\n\n{said}\n\n"
        f"The same choice on random subsets of the validation documents:\n\n{table}\n\n"
        "regret: how much worse the chosen K is, on all documents, than the best K there."
    )


def _shares(shares: Mapping[int, float], shown: int = 4) -> str:
    """`27 (61 %), 25 (20 %), 3 others (19 %)`."""
    ranked = sorted(shares.items(), key=lambda pair: -pair[1])
    # One that is left over is named: "1 other" would be as long.
    named, others = (ranked, []) if len(ranked) <= shown + 1 else (ranked[:shown], ranked[shown:])
    parts = [f"{boundary} ({percent(share)})" for boundary, share in named]
    if others:
        parts.append(f"{len(others)} others ({percent(sum(share for _, share in others))})")
    return ", ".join(parts)
