"""What candidates trade: the optimised score, the parameters kept, and the scores on other tasks, as one table."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lm_eval_lora_drop.record.schema import TaskRecord
from lm_eval_lora_drop.show.tables import table
from lm_eval_lora_drop.show.verdict.sweep_text import sweep_decimals
from lm_eval_lora_drop.sweep.tradeoffs.pareto import pareto_front
from lm_eval_lora_drop.text import number
from lm_eval_lora_drop.variant import Variant


@dataclass(frozen=True)
class TradeOffRow:
    """One candidate: `score` and `others` in the metrics' own units, `kept` adapter parameters. `fronts[0]` says
    whether it is on the Pareto front of score and few parameters, `fronts[i + 1]` on that of score and other task i."""

    variant: Variant
    kept: int | None
    score: float | None
    others: tuple[float | None, ...]
    fronts: tuple[bool, ...]


def tradeoff_rows(task: TaskRecord) -> list[TradeOffRow]:
    """The candidates of a sweep that were not eliminated, in their order.

    Raises:
        ValueError: the task had no sweep.
    """
    if task.sweep is None or task.metric is None:
        raise ValueError("a trade needs a sweep")
    rows = [row for row in task.sweep.candidates if row.eliminated_after is None]
    scores = [_signed(row.score, task.metric.sign) for row in rows]
    kept = [task.candidate_parameters.get(row.variant) for row in rows]
    axes = [[-float(one) if one is not None else math.nan for one in kept]]
    columns: list[list[float | None]] = []
    for also in task.also:
        of = {row.variant: row.score for row in also.candidates}
        columns.append([of.get(row.variant) for row in rows])
        axes.append([_signed(value, also.metric.sign) for value in columns[-1]])
    fronts = [pareto_front(list(zip(scores, axis, strict=True))) for axis in axes]
    return [
        TradeOffRow(
            Variant.parse(row.variant, task.num_layers),
            kept[place],
            row.score,
            tuple(column[place] for column in columns),
            tuple(front[place] for front in fronts),
        )
        for place, row in enumerate(rows)
    ]


def trade_table(task: TaskRecord) -> str:
    """A line per candidate: parameters, the optimised score, and the score on each other task; `*` marks the Pareto
    front: no other candidate is better in both the optimised score and this."""
    rows = tradeoff_rows(task)
    assert task.sweep is not None
    places = [sweep_decimals(task.sweep), *map(sweep_decimals, task.also)]
    lines = []
    for row in rows:
        stars = ["*" if front else "" for front in row.fronts]
        kept = "-" if row.kept is None else format(row.kept, ",")
        others = (number(value, decimals) for value, decimals in zip(row.others, places[1:], strict=True))
        chosen = "chosen" if str(row.variant) == task.sweep.chosen else ""
        cells = [f"{star}{cell}" for cell, star in zip((kept, *others), stars, strict=True)]
        lines.append([row.variant.label, number(row.score, places[0]), *cells, chosen])
    headings = ["kept", str(task.metric), "parameters", *(f"{also.task} {also.metric}" for also in task.also), ""]
    chosen_by = f"the choice is by sweep_select={task.sweep.select}" if task.sweep.bounds else "nothing is chosen by it"
    legend = f"* no candidate is better in both the optimised score and this (Pareto front); {chosen_by}."
    return f"{table(headings, lines, left=['kept', ''])}\n{legend}"


def _signed(value: float | None, sign: int) -> float:
    return math.nan if value is None else sign * value
