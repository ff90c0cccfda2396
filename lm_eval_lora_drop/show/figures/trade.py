"""The figure of what candidates trade: the optimised score against the parameters kept, and against other tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from lm_eval_lora_drop.record.schema import TaskRecord
from lm_eval_lora_drop.show.figures import style
from lm_eval_lora_drop.show.figures.style import STYLE, clean, draw_marks, shorten
from lm_eval_lora_drop.show.verdict.trade_text import TradeOffRow, tradeoff_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _HEIGHT = 3.4, 3.5


def trade_figure(task: str, record: TaskRecord) -> Figure:
    """A panel for the parameters kept and one for each other task; the optimised score on the y axis of all.

    Candidates on a panel's Pareto front are black and joined; the chosen one, the full adapter and the base model are
    marked.

    Raises:
        ValueError: the record holds no sweep.
    """
    rows = tradeoff_rows(record)
    assert record.metric is not None
    assert record.sweep is not None
    panels = 1 + len(record.also)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH * panels + 0.6, _HEIGHT + 0.7), layout="constrained")
        for place, axes in enumerate(figure.subplots(1, panels, squeeze=False, sharey=True)[0]):
            values = [row.kept if place == 0 else row.others[place - 1] for row in rows]
            _draw(axes, rows, values, place, record.sweep.chosen)
            if place == 0:
                axes.set_xlabel("adapter parameters kept")
                axes.xaxis.set_major_formatter(EngFormatter())
            else:
                also = record.also[place - 1]
                better = "" if also.metric.higher_is_better else " (lower is better)"
                axes.set_xlabel(clean(f"{shorten(also.task, 30)}\n{shorten(str(also.metric), 30)}{better}"))
            if place == 0:
                worse = "" if record.metric.higher_is_better else " (lower is better)"
                axes.set_ylabel(clean(f"{shorten(str(record.metric), 30)}{worse}"))
                axes.set_title(clean(f"{shorten(task)}: trade-offs"))
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _draw(axes: Axes, rows: Sequence[TradeOffRow], values: Sequence[float | None], panel: int, chosen: str) -> None:
    points = [
        (value, row.score, row)
        for value, row in zip(values, rows, strict=True)
        if value is not None and row.score is not None
    ]
    front = sorted(((x, y) for x, y, row in points if row.fronts[panel]), key=lambda point: point[0])
    look: Any = {"color": style.BLACK, "linewidth": 1, "marker": "o", "markersize": 4, "label": "Pareto front"}
    axes.plot([x for x, _ in front], [y for _, y in front], **look)
    behind = [(x, y) for x, y, row in points if not row.fronts[panel]]
    axes.plot([x for x, _ in behind], [y for _, y in behind], "o", color=style.GREY, markersize=3, alpha=0.6, zorder=1)
    labels = {"chosen": "chosen", "full": "full adapter", "base": "base model"}
    draw_marks(axes, [(row.variant, x, y) for x, y, row in points], chosen, labels)
