"""The figure of a sweep: over K for boundaries of one adapter, else a line for each candidate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

from lm_eval_lora_drop.record.schema import RunRecord, SweepRecord, TaskRecord
from lm_eval_lora_drop.show.figures import style
from lm_eval_lora_drop.show.figures.style import (
    FORMATS,
    STYLE,
    NotebookFigure,
    clean,
    draw_marks,
    save_figure,
    shorten,
)
from lm_eval_lora_drop.show.figures.sweep import draw_test_differences, gains_of, sweep_figure, title_of
from lm_eval_lora_drop.show.figures.trade import trade_figure
from lm_eval_lora_drop.sweep.select import places_of
from lm_eval_lora_drop.variant import Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 48
"""Candidates that are drawn: with more the best, the chosen, the base model and the full adapter among them."""
_WIDTH, _LINE, _REST = 6.4, 0.17, 1.35


@dataclass(frozen=True)
class _Row:
    kept: Variant
    value: float
    low: float
    high: float


def figure_of(task: str, record: TaskRecord, run: RunRecord | None = None) -> Figure:
    """The figure that fits a task's sweep; `run` names adapter and model.

    Raises:
        ArgumentError: the record holds no sweep.
    """
    rows = record.sweep.candidates if record.sweep is not None else ()
    variants = [Variant.parse(row.variant, record.num_layers) for row in rows]
    over_k = all(kept.boundary is not None and not kept.adapter for kept in variants)
    return (sweep_figure if over_k else candidates_figure)(task, record, run)


def save_figures_of(
    task: str, record: TaskRecord, stem: Path, formats: Iterable[str] = FORMATS, run: RunRecord | None = None
) -> list[Path]:
    """Draw a task's sweep as `<stem>.png`, ..., and what is traded for other tasks (`sweep_also`) as
    `<stem>-trade.png`, ...; return the paths."""
    wanted = list(formats)
    paths = save_figure(figure_of(task, record, run), stem, wanted)
    if record.also:
        paths += save_figure(trade_figure(task, record), stem.with_name(f"{stem.name}-trade"), wanted)
    return paths


def candidates_figure(task: str, record: TaskRecord, run: RunRecord | None = None) -> Figure:
    """A dot for each candidate: the paired difference to the full adapter with the simultaneous 95 % band
    (`sweep.trust`), positive is better; where no differences are known (full was no candidate or was eliminated, or
    only the task knows the aggregation), the score with one standard error.

    Ordered candidates (strengths, upper layers) stand in their order, others from best to worst.
    """
    sweep, metric = record.sweep, record.metric
    assert sweep is not None
    assert metric is not None
    gains = gains_of(record)
    if gains:
        what, interval, sign = "paired difference to the full adapter, right is better", "simultaneous 95 % band", 1
        rows = [_Row(kept, gain.value, gain.low, gain.high) for kept, gain in gains.items()]
    else:
        what = f"validation score, {'higher' if metric.higher_is_better else 'lower'} is better"
        interval, sign = "± 1 standard error", metric.sign
        rows = [
            _Row(Variant.parse(one.variant, record.num_layers), one.score, *_ends(one.score, one.stderr))
            for one in sweep.candidates
            if one.score is not None
        ]
    shown = _shown(_in_order(rows, sweep, sign), sweep, sign)
    documents = max((one.documents for one in sweep.candidates), default=0)
    with mpl.rc_context(STYLE):
        figure = NotebookFigure(figsize=(_WIDTH, _REST + _LINE * len(shown)), layout="constrained")
        axes = figure.subplots()
        _draw(axes, shown, sweep.chosen, interval)
        if gains:
            axes.axvline(0, color=style.BLUE, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
            draw_test_differences(axes, {str(row.kept): place for place, row in enumerate(shown)}, record, across=True)
        axes.set_xlabel(f"{clean(shorten(str(metric), 44))}: {what}")
        left_out = f", {len(shown)} of {len(rows)} candidates" if len(shown) < len(rows) else ""
        axes.set_title(title_of(task, f"{documents} validation documents{left_out}", run))
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def _ends(score: float, stderr: float | None) -> tuple[float, float]:
    return score - (stderr or 0.0), score + (stderr or 0.0)


def _in_order(rows: list[_Row], sweep: SweepRecord, sign: int) -> list[_Row]:
    if not sweep.ordered:
        return sorted(rows, key=lambda row: -sign * row.value)
    places = dict(zip(rows, places_of([row.kept for row in rows]), strict=True))
    falling = places[rows[-1]] < places[rows[0]]
    return sorted(rows, key=lambda row: places[row] * (-1 if falling else 1))


def _shown(rows: list[_Row], sweep: SweepRecord, sign: int) -> list[_Row]:
    if len(rows) <= MOST:
        return rows
    marked = [row for row in rows if str(row.kept) == sweep.chosen or row.kept.is_full or row.kept.is_base]
    best = sorted((row for row in rows if row not in marked), key=lambda row: -sign * row.value)[: MOST - len(marked)]
    return [row for row in rows if row in marked or row in best]


def _draw(axes: Axes, rows: Sequence[_Row], chosen: str, interval: str) -> None:
    # Full does not differ from itself: a line without length.
    axes.hlines(
        range(len(rows)),
        [row.low for row in rows],
        [row.high for row in rows],
        color=style.SKY,
        linewidth=3,
        label=interval,
        zorder=2,
    )
    # Below the marks, which of several full adapters only the first has.
    for place, row in enumerate(rows):
        axes.plot([row.value], [place], "o", color=style.BLACK, markersize=3.5, zorder=3)
    marks = [(row.kept, row.value, float(place)) for place, row in enumerate(rows)]
    draw_marks(axes, marks, chosen, {"chosen": "chosen", "full": "full adapter", "base": "base model"})
    axes.set_yticks(range(len(rows)), [shorten(row.kept.label, 34) for row in rows])
    for text, row in zip(axes.get_yticklabels(), rows, strict=True):
        text.set_fontweight("bold" if str(row.kept) == chosen else "normal")
    # The first candidate at the top.
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
