"""The figure of a sweep whose candidates are no boundaries: each one's paired difference to the full adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.schema import TaskRecord
from lm_eval_lora_drop.show.figures import style
from lm_eval_lora_drop.show.figures.style import FORMATS, STYLE, NotebookFigure, clean, file_name, save_figure, shorten
from lm_eval_lora_drop.show.figures.sweep import draw_test_differences, sweep_figure
from lm_eval_lora_drop.sweep.recorded import RecordedSweep
from lm_eval_lora_drop.sweep.select import places_of
from lm_eval_lora_drop.sweep.trust import Gain, gains_over_full
from lm_eval_lora_drop.variant import Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 48
"""Candidates that are drawn: with more the best, the chosen, the base model and the full adapter among them."""
_WIDTH, _LINE, _REST = 6.4, 0.17, 1.35


def figure_of(task: str, record: TaskRecord) -> Figure:
    """The figure that fits a task's sweep: over K for boundaries of one adapter, else `family_figure`; where nothing
    can be compared with the full adapter, the scores side by side.

    Raises:
        ArgumentError: the record holds no sweep.
    """
    if record.sweep is None or _are_boundaries(record):
        return sweep_figure(task, record)
    try:
        return family_figure(task, record)
    except ArgumentError:
        # An aggregation that only the task knows, or a full adapter that racing eliminated.
        return sweep_figure(task, record)


def save_figure_of(task: str, record: TaskRecord, folder: Path, formats: Iterable[str] = FORMATS) -> list[Path]:
    """Draw a task's sweep into `folder` as `sweep-<task>.png`, ...; return the paths."""
    return save_figure(figure_of(task, record), folder / f"sweep-{file_name(task)}", formats)


def family_figure(task: str, record: TaskRecord) -> Figure:
    """A dot a candidate: the paired difference to the full adapter, with its interval of the band that holds for all
    candidates together (`sweep.trust`).

    Candidates without order stand from the best to the worst, those of an ordered family (strengths, upper layers) in
    their own. Positive is better, whatever the metric's direction.

    Raises:
        ArgumentError: the record holds no sweep, or none in which candidates can be compared with the full adapter.
    """
    recorded = RecordedSweep.from_record(record)
    gains = gains_over_full(recorded)
    if not gains or record.metric is None:
        raise ArgumentError(f"{task}: the full adapter was not among the candidates, so there is no difference to it.")
    rows = list(gains.items())
    places = dict(zip(recorded.candidates, places_of(recorded.candidates), strict=True))
    falling = places[rows[-1][0]] < places[rows[0][0]]
    rows.sort(key=lambda row: (places[row[0]] * (-1 if falling else 1)) if recorded.ordered else -row[1].value)
    shown = _shown(rows, recorded)
    with mpl.rc_context(STYLE):
        figure = NotebookFigure(figsize=(_WIDTH, _REST + _LINE * len(shown)), layout="constrained")
        axes = figure.subplots()
        _draw(axes, shown, recorded)
        draw_test_differences(axes, {str(row[0]): place for place, row in enumerate(shown)}, record, across=True)
        axes.set_xlabel(
            f"{clean(shorten(record.metric.name, 30))}: paired difference to the full adapter, right is better"
        )
        left_out = f", {len(shown)} of {len(rows)} candidates" if len(shown) < len(rows) else ""
        axes.set_title(clean(f"{shorten(task)}: {recorded.documents} validation documents{left_out}"))
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def _are_boundaries(record: TaskRecord) -> bool:
    assert record.sweep is not None
    variants = [Variant.parse(row.variant, record.num_layers) for row in record.sweep.candidates]
    return all(kept.boundary is not None and not kept.adapter for kept in variants)


def _shown(rows: Sequence[tuple[Variant, Gain]], recorded: RecordedSweep) -> list[tuple[Variant, Gain]]:
    if len(rows) <= MOST:
        return list(rows)
    marked = [row for row in rows if row[0] in (recorded.chosen, recorded.full) or row[0].is_base]
    best = sorted((row for row in rows if row not in marked), key=lambda row: -row[1].value)[: MOST - len(marked)]
    return [row for row in rows if row in marked or row in best]


def _draw(axes: Axes, rows: Sequence[tuple[Variant, Gain]], recorded: RecordedSweep) -> None:
    axes.axvline(0, color=style.BLUE, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    for place, (variant, gain) in enumerate(rows):
        if variant != recorded.full:
            label = "simultaneous 95 % interval" if place == _first_compared(rows, recorded) else None
            axes.plot([gain.low, gain.high], [place, place], color=style.SKY, linewidth=3, label=label, zorder=2)
    marks: tuple[tuple[str, Callable[[Variant], bool], str, str, float], ...] = (
        ("chosen", lambda kept: kept == recorded.chosen, "D", style.VERMILLION, 6),
        ("full adapter", lambda kept: kept == recorded.full, "s", style.BLUE, 6),
        ("base model", lambda kept: kept.is_base, "^", style.GREY, 6),
    )
    for place, (variant, gain) in enumerate(rows):
        if not any(applies(variant) for _, applies, *_ in marks):
            axes.plot([gain.value], [place], "o", color=style.BLACK, markersize=3.5, zorder=3)
    for name, applies, marker, colour, size in marks:
        for place, (variant, gain) in enumerate(rows):
            if applies(variant):
                axes.plot(
                    [gain.value], [place], marker, color=colour, markersize=size, label=name, linestyle="none", zorder=4
                )
    axes.set_yticks(range(len(rows)), [shorten(variant.label, 34) for variant, _ in rows])
    for text, (variant, _) in zip(axes.get_yticklabels(), rows, strict=True):
        text.set_fontweight("bold" if variant == recorded.chosen else "normal")
    # The first candidate at the top.
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def _first_compared(rows: Sequence[tuple[Variant, Gain]], recorded: RecordedSweep) -> int:
    return next(place for place, (variant, _) in enumerate(rows) if variant != recorded.full)
