"""What candidates trade: the optimised score, the parameters kept, and the scores on other tasks, as one table."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lm_eval_lora_drop.record.schema import CandidateRecord, TaskRecord
from lm_eval_lora_drop.sweep.tradeoffs.pareto import pareto_front
from lm_eval_lora_drop.text import decimals_of_column, number
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
    """The candidates of a sweep that were carried to the end, in their order.

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
    """A line per candidate: parameters, the optimised score, and the score on each other task; `*` behind a number says
    that no other candidate is better in both the optimised score and this."""
    rows = tradeoff_rows(task)
    assert task.sweep is not None
    decimals = decimals_of_column((row.score, row.stderr) for row in task.sweep.candidates)
    first = max(4, *(len(row.variant.label) for row in rows))
    headings = [str(task.metric), "parameters", *(f"{also.task} {also.metric}" for also in task.also)]
    widths = [max(11, len(heading) + 1) for heading in headings]
    lines = [f"{'kept':>{first}}" + "".join(f"  {h:>{w}}" for h, w in zip(headings, widths, strict=True))]
    places = [_decimals(also.candidates) for also in task.also]
    for row in rows:
        cells = [
            f"{number(row.score, decimals)} ",
            f"{'-' if row.kept is None else format(row.kept, ',')}{_star(row, 0)}",
        ]
        cells += [f"{number(value, places[place])}{_star(row, place + 1)}" for place, value in enumerate(row.others)]
        chosen = "  chosen" if str(row.variant) == task.sweep.chosen else ""
        lines.append(
            f"{row.variant.label:>{first}}"
            + "".join(f"  {c:>{w}}" for c, w in zip(cells, widths, strict=True))
            + chosen
        )
    chosen_by = f"the choice is by sweep_select={task.sweep.select}" if task.sweep.bounds else "nothing is chosen by it"
    lines.append(f"* no candidate is better in both the optimised score and this (Pareto front); {chosen_by}.")
    return "\n".join(lines)


def _decimals(rows: tuple[CandidateRecord, ...]) -> int:
    return decimals_of_column((row.score, row.stderr) for row in rows)


def _star(row: TradeOffRow, front: int) -> str:
    return "*" if row.fronts[front] else " "


def _signed(value: float | None, sign: int) -> float:
    return math.nan if value is None else sign * value
