"""`lora-drop stability RUN`: how far a sweep's choice can be trusted, from its recorded scores, without the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tabulate import tabulate

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.runs import Run
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


def swept_tasks(run: Run) -> dict[str, Mapping[str, Any]]:
    """The entries of the tasks of a run whose boundary was found by a sweep."""
    entries = {name: task.lora_drop for name, task in run.tasks.items()}
    return {name: entry for name, entry in entries.items() if entry is not None and entry.get("sweep")}


def assess(task: str, entry: Mapping[str, Any], sizes: Sequence[int] | None = None, seed: int = 0) -> Stability:
    """Resample the recorded scores of one task's sweep.

    Raises:
        ArgumentError: too few documents, or an entry that cannot be read back.
    """
    try:
        recorded = RecordedSweep.from_entry(entry)
    except (KeyError, TypeError) as error:
        raise ArgumentError(f"task {task}: the record of the sweep is incomplete ({error!r}).") from error
    return Stability(
        task=task,
        metric=str(entry["metric"]),
        chosen=recorded.chosen,
        num_layers=recorded.num_layers,
        trust=trust(recorded, seed=seed),
        sizes=tuple(stability(recorded, sizes, seed=seed)),
    )


def sentences(found: Stability) -> list[str]:
    """The bootstrap in words."""
    trusted = found.trust
    share = trusted.choice_share.get(found.chosen, 0.0)
    said = [
        f"K = {found.chosen} is chosen in {share:.0%} of {trusted.resamples} resamples of the {trusted.documents} "
        f"validation documents; most often: {_shares(trusted.choice_share)}.",
        f"Its validation score is {trusted.apparent:.4g}; on new documents expect about {trusted.corrected:.4g}, "
        f"because the best of many looks better than it is (by {trusted.optimism:.3g}).",
    ]
    if found.chosen == found.num_layers:
        return [*said, "The whole adapter was chosen: there is no gain to ask for."]
    if trusted.better_than_full is None or trusted.corrected_gain is None or trusted.corrected_gain_interval is None:
        return [*said, "The whole adapter was not among the candidates, so nothing is said about a gain."]
    low, high = trusted.corrected_gain_interval
    return [
        *said,
        f"It beats the whole adapter in {trusted.better_than_full:.0%} of the resamples. Chosen on some documents and "
        f"scored on others, the gain is {trusted.corrected_gain:+.3g} (95 % interval {low:+.3g} to {high:+.3g}).",
    ]


def render(found: Stability) -> str:
    """For the terminal."""
    rows = [
        [
            size.documents,
            _shares(size.choice_share),
            f"{size.same_choice:.0%}",
            f"{size.regret:.3g}",
            f"{size.regret_95:.3g}",
            "" if size.unseen is None else f"{size.unseen:.4g}",
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
    ranked = sorted(shares.items(), key=lambda pair: -pair[1])
    more = ", ..." if len(ranked) > shown else ""
    return ", ".join(f"{boundary} ({share:.0%})" for boundary, share in ranked[:shown]) + more
