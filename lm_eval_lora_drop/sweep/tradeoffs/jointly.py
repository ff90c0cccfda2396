"""One choice for all tasks of a run (`sweep_jointly`): every task's scores in its own unit, then mean or worst case.

A task's candidates stand by their difference to the full adapter on its documents, divided by the task's unit: the
standard deviation of what single documents contribute to a score, over all its candidates and documents together (a
standardised mean difference; Cohen, 1988, Statistical Power Analysis for the Behavioral Sciences, chapter 2). Two other
units that come to mind were not taken:

- The range from base model to full adapter blows up where the adapter brings nothing, which is when dropping matters.
- The standard error of a candidate's own difference tells how sure a difference is, not how large: it is tiny where few
  documents differ, and a task with more documents would weigh more.

The unit here is zero only where all candidates score all documents alike; then all differences are zero too, and stay
so. Else no difference of B candidates exceeds sqrt(2 B) units (for means), because the spread between candidates is
part of the unit. A task on which nothing matters has small differences and weighs little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.plain import plain
from lm_eval_lora_drop.record.schema import JointRecord, SweepRecord
from lm_eval_lora_drop.statistics.aggregation import Floats
from lm_eval_lora_drop.sweep.candidates import SEARCHED
from lm_eval_lora_drop.sweep.run import choose_anew
from lm_eval_lora_drop.sweep.select import choose_rows, contributions, on_common_documents, places_of
from lm_eval_lora_drop.sweep.tradeoffs.bounds import ScoredCandidates, floats
from lm_eval_lora_drop.variant import Variant

RULES = (None, "best", "smooth")


@dataclass(frozen=True, eq=False)
class JointCriterion:
    """How one task's scores become what is chosen by: `unit` is its own, `others` are the other tasks' differences to
    the full adapter in their units, `(B,)` each; `full` is the full adapter's row."""

    how: str
    unit: float
    others: Mapping[str, Floats]
    full: int = 0

    def combined(self, scores: Floats) -> Floats:
        """`(R, B)` optimised scores of this task, higher is better, to mean or worst case over all tasks."""
        own = (scores - scores[:, self.full, None]) / (self.unit or 1.0)
        rows = np.stack([own, *(np.broadcast_to(one, own.shape) for one in self.others.values())])
        return np.asarray(rows.mean(axis=0) if self.how == "mean" else rows.min(axis=0))

    @classmethod
    def of(cls, sweep: SweepRecord) -> JointCriterion | None:
        """From a record; None where the choice was the task's own.

        Raises:
            ArgumentError: the record lacks a candidate on one of the other tasks.
        """
        record = sweep.jointly
        if record is None:
            return None
        names = [row.variant for row in sweep.candidates]
        for task, standing in record.others.items():
            if not set(names) <= set(standing):
                raise ArgumentError(
                    f"the record of a joint choice must say how every candidate stands on task {task}, and lacks some. "
                    "The file is damaged or was edited; evaluate again."
                )
        others = {task: floats([one[name] for name in names]) for task, one in record.others.items()}
        return cls(record.how, record.unit, others)


def check_jointly(
    how: str, sets: Sequence[str], strategy: str, select: str | None, candidates: Sequence[Variant]
) -> None:
    """Refuse what has no candidates in common, before a model is loaded.

    Raises:
        ArgumentError: racing or refine, a set whose candidates depend on the task, a rule that compares documents in
            pairs, or no full adapter to hold the others against.
    """
    asked = f"sweep_jointly={how} takes one candidate for all tasks"
    if strategy != "exhaustive":
        raise ArgumentError(
            f"{asked}, so all must be scored to the end on each, got sweep_strategy={strategy}. Take "
            "sweep_strategy=exhaustive."
        )
    if own := sorted(set(sets) & {*SEARCHED, "scores"}):
        raise ArgumentError(
            f"{asked}, and the candidates of sweep_candidates={'+'.join(own)} are each task's own. Take another set."
        )
    if select not in RULES:
        raise ArgumentError(
            f"{asked} by the best or the smoothed mean or worst case, got sweep_select={select}, which compares "
            "documents or scores of one task. Leave sweep_select out, or take best or smooth."
        )
    if not any(one.is_full for one in candidates):
        raise ArgumentError(
            f"{asked} and holds them against the full adapter, which must be among them. Add K = L to sweep_boundaries."
        )


def choose_jointly(
    sweeps: Mapping[str, SweepRecord], judged: Mapping[str, ScoredCandidates], how: str, num_layers: int
) -> dict[str, SweepRecord]:
    """The sweeps of several tasks, each with the one candidate that is taken for all of them.

    All have the same candidates, the full adapter first, and the same rule (`best` or `smooth`); a candidate without a
    score on one of the tasks is not taken.
    """
    first = next(iter(sweeps.values()))
    names = [row.variant for row in first.candidates]
    units, signed, standing = {}, {}, {}
    for task, on in judged.items():
        sign = on.scorer.metric.sign
        items = [row.items for row in on.candidates]
        values = contributions(items, on.scorer.aggregation, sign)
        units[task] = float(np.nanstd(values))
        scores = sign * floats([row.score for row in on.candidates])[None]
        signed[task] = on_common_documents(
            items, values, scores, np.ones((1, values.shape[1]), dtype=np.int64), worst=on.scorer.metric.worst
        )[1]
        standing[task] = JointCriterion(how, units[task], {}).combined(signed[task])[0]
    task = next(iter(sweeps))
    others = {name: one for name, one in standing.items() if name != task}
    combined = JointCriterion(how, units[task], others).combined(signed[task])
    if not np.isfinite(combined).any():
        raise ArgumentError(
            f"sweep_jointly={how} needs a candidate with a score on every task ({', '.join(sweeps)}), and none has. "
            "Choose another sweep_metric."
        )
    documents = len(first.candidates[0].items)
    rows, _ = choose_rows(
        first.select,
        np.zeros((len(names), documents)),
        combined,
        np.ones((1, documents), dtype=np.int64),
        ordered=first.ordered,
        places=places_of([Variant.parse(name, num_layers) for name in names]),
    )
    chosen = names[int(rows[0])]
    found = {}
    for name, sweep in sweeps.items():
        record = JointRecord(
            how="worst" if how == "worst" else "mean",
            unit=units[name],
            alone=sweep.chosen,
            others={
                other: dict(zip(names, plain(one), strict=True)) for other, one in standing.items() if other != name
            },
        )
        on = judged[name]
        found[name] = replace(choose_anew(sweep, chosen, on.scorer, on.clusters), jointly=record)
    return found
