"""The figure of a sweep: the validation metric over the boundary K (the paper's Figure 4), or over other candidates,
and below it what the same documents say of each against the full adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.schema import SweepRecord, TaskRecord
from lm_eval_lora_drop.show.figures import style
from lm_eval_lora_drop.show.figures.axes import boundary_axis
from lm_eval_lora_drop.show.figures.style import FORMATS, STYLE, NotebookFigure, clean, file_name, save_figure, shorten
from lm_eval_lora_drop.text import decimals_of_column, with_error
from lm_eval_lora_drop.variant import Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lm_eval_lora_drop.sweep.trust import Gain

_WIDTH, _HEIGHT, _LOWER = 6.4, 3.7, 1.9
"""Inches: of the scores alone, and how much the differences add."""
_LONGEST_LABEL = 24


def sweep_figure(task: str, record: TaskRecord) -> Figure:
    """The validation metric over the candidates with one standard error; chosen, full and base marked.

    Boundaries stand on a scale from 0 to L, joined by a line with a band; other candidates stand side by side, since
    nothing lies between them. A candidate that racing eliminated rests on fewer documents: it is drawn hollow.

    The lower panel shows the paired differences to full with the band that holds for all candidates together
    (`sweep.trust.gains_over_full`), positive where a candidate is better. It is left out where that cannot be had:
    full was no candidate, or the aggregation is known to its task alone.

    Args:
        task: the task's name, for the title.
        record: what is written down of the task.

    Raises:
        ArgumentError: the record holds no sweep.
    """
    sweep = record.sweep
    if sweep is None or record.metric is None:
        raise ArgumentError(
            f"The figure of a sweep needs a task whose boundary was found by a sweep, got {task!r} with "
            f"method={record.method!r}. Evaluate it with boundary=auto."
        )
    points, on_scale = _points(record, sweep)
    gains = _gains(record)
    with mpl.rc_context(STYLE):
        figure = NotebookFigure(figsize=(_WIDTH, _HEIGHT + (_LOWER if gains else 0)), layout="constrained")
        panels = figure.subplots(
            2 if gains else 1, sharex=True, squeeze=False, height_ratios=[_HEIGHT, _LOWER][: 1 + bool(gains)]
        )
        axes, lowest = panels[0, 0], panels[-1, 0]
        _draw_scores(axes, points, joined=on_scale)
        _mark(axes, points, sweep)
        _draw_test(axes, points, record)
        better = "higher is better" if record.metric.higher_is_better else "lower is better"
        axes.set_ylabel(f"{clean(shorten(record.metric.name, 30))}\n(validation documents, {better})")
        axes.set_title(clean(_title(task, points)))
        if gains:
            _draw_gains(
                lowest, [(point, gains[point.kept]) for point in points if point.kept in gains], sweep, on_scale
            )
            if draw_test_differences(lowest, {str(point.kept): point.at for point in points}, record):
                lowest.set_title(f"{lowest.get_title('left')}; test split: 95 % interval", fontsize=9)
        if on_scale:
            boundary_axis(lowest, record.num_layers)
        else:
            _name_axis(lowest, points)
        axes.legend(loc="best")
    return figure


@dataclass(frozen=True)
class _Point:
    at: int
    kept: Variant
    score: float
    stderr: float | None
    documents: int
    eliminated: bool


def _points(record: TaskRecord, sweep: SweepRecord) -> tuple[list[_Point], bool]:
    """The candidates that have a score, from left to right, and whether they are boundaries, placed at their K."""
    rows = [(Variant.parse(row.variant, record.num_layers), row) for row in sweep.candidates if row.score is not None]
    on_scale = all(kept.boundary is not None and not kept.adapter for kept, _ in rows)
    found = []
    # Candidates stand from most kept to least; a figure reads from least to most, as K grows.
    for place, (kept, row) in enumerate(reversed(rows)):
        assert row.score is not None
        at = kept.boundary if on_scale and kept.boundary is not None else place
        found.append(_Point(at, kept, row.score, row.stderr, row.documents, row.eliminated_after is not None))
    return sorted(found, key=lambda point: point.at), on_scale


def _title(task: str, points: Sequence[_Point]) -> str:
    return f"{shorten(task)}: {max((point.documents for point in points), default=0)} validation documents"


def _draw_scores(axes: Axes, points: Sequence[_Point], *, joined: bool) -> None:
    at = [point.at for point in points]
    score = [point.score for point in points]
    error = [point.stderr or 0.0 for point in points]
    if joined:
        axes.fill_between(
            at,
            [s - e for s, e in zip(score, error, strict=True)],
            [s + e for s, e in zip(score, error, strict=True)],
            color=style.SKY,
            alpha=0.3,
            linewidth=0,
            label="± 1 standard error",
        )
        axes.plot(at, score, color=style.BLACK, linewidth=1.2)
    else:
        axes.errorbar(at, score, yerr=error, fmt="none", ecolor=style.SKY, elinewidth=3, label="± 1 standard error")
    for eliminated, face, label in ((False, style.BLACK, None), (True, "white", "eliminated early (fewer documents)")):
        some = [point for point in points if point.eliminated is eliminated]
        if some:
            axes.plot(
                [point.at for point in some],
                [point.score for point in some],
                linestyle="none",
                marker="o",
                markersize=4 if eliminated else 3.5,
                color=style.BLACK,
                markerfacecolor=face,
                label=label,
            )


def _mark(axes: Axes, points: Sequence[_Point], sweep: SweepRecord) -> None:
    # Without the rule a reader asks why it is not the highest point.
    rule = "chosen" if sweep.select == "best" else f"chosen ({sweep.select})"
    decimals = decimals_of_column((point.score, point.stderr) for point in points)
    chosen = [point for point in points if str(point.kept) == sweep.chosen]
    # Full is larger and below, so that both show where the full adapter was chosen.
    marks = (
        (rule, chosen, "D", style.VERMILLION, 7, 4),
        ("full", [point for point in points if point.kept.is_full], "s", style.BLUE, 9, 3),
        ("base", [point for point in points if point.kept.is_base], "^", style.GREY, 7, 3),
    )
    for name, found, marker, colour, size, order in marks:
        for point in found[:1]:
            axes.plot(
                [point.at],
                [point.score],
                linestyle="none",
                marker=marker,
                markersize=size,
                color=colour,
                zorder=order,
                clip_on=False,
                label=f"{name}, {shorten(point.kept.label, 30)}: {with_error(point.score, point.stderr, decimals)}",
            )
    for point in chosen:
        axes.axvline(point.at, color=style.VERMILLION, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)


def _draw_test(axes: Axes, points: Sequence[_Point], record: TaskRecord) -> None:
    """The test scores of what was evaluated beside the chosen part (`evaluate=`), hollow, with one standard error."""
    assert record.metric is not None
    rows = record.evaluated.rows if record.evaluated else ()
    known = {row.variant: row.score_of(record.metric) for row in rows}
    found = [(point.at, score) for point in points if (score := known.get(str(point.kept))) and score.score is not None]
    if found:
        axes.errorbar(
            [at for at, _ in found],
            [score.score for _, score in found if score.score is not None],
            yerr=[score.stderr or 0.0 for _, score in found],
            fmt="o",
            color=style.GREEN,
            markerfacecolor="none",
            markersize=8,
            elinewidth=1,
            capsize=3,
            zorder=5,
            clip_on=False,
            label="test split, ± 1 standard error",
        )


def _gains(record: TaskRecord) -> dict[Variant, Gain]:
    """Every candidate's difference to full, empty where the record does not say."""
    # Resampling knows the harness's aggregations, whose import takes seconds.
    from lm_eval_lora_drop.sweep.recorded import RecordedSweep
    from lm_eval_lora_drop.sweep.trust import gains_over_full

    try:
        return gains_over_full(RecordedSweep.from_record(record))
    except ArgumentError:
        return {}


def _draw_gains(axes: Axes, gains: Sequence[tuple[_Point, Gain]], sweep: SweepRecord, joined: bool) -> None:
    """Paired differences to full with the simultaneous band; full itself, which has none, is a point on the line."""
    at = [point.at for point, _ in gains]
    value = [gain.value for _, gain in gains]
    # Full differs from itself nowhere: its interval would only say how wide the band is where nothing differs.
    edges = [(0.0, 0.0) if point.kept.is_full else (gain.low, gain.high) for point, gain in gains]
    axes.axhline(0, color=style.BLUE, linewidth=0.9)
    if joined:
        low, high = [low for low, _ in edges], [high for _, high in edges]
        axes.fill_between(at, low, high, color=style.SKY, alpha=0.3, linewidth=0)
        axes.plot(at, value, color=style.BLACK, linewidth=1.2, marker="o", markersize=2.5)
    else:
        axes.vlines(at, [low for low, _ in edges], [high for _, high in edges], color=style.SKY, linewidth=3)
        axes.plot(at, value, color=style.BLACK, linestyle="none", marker="o", markersize=3)
    for point, gain in gains:
        if str(point.kept) == sweep.chosen:
            axes.plot([point.at], [gain.value], "D", color=style.VERMILLION, markersize=6, zorder=4, clip_on=False)
            axes.axvline(point.at, color=style.VERMILLION, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axes.set_ylabel("difference to full\n(above 0: better)")
    # A title and no legend: the band may fill the panel.
    axes.set_title("Paired difference to the full adapter, simultaneous 95 % band", fontsize=9)


def draw_test_differences(axes: Axes, places: Mapping[str, float], record: TaskRecord, *, across: bool = False) -> bool:
    """The paired differences to full on the test split with their 95 % intervals, hollow; whether there are any.

    Args:
        axes: of the validation differences.
        places: where each variant stands, on x, or on y where differences go `across`.
        record: of the task.
        across: whether differences are on x.
    """
    assert record.metric is not None
    rows = record.evaluated.rows if record.evaluated else ()
    known = [(places[row.variant], row.score_of(record.metric)) for row in rows if row.variant in places]
    found = [(place, score.to_full) for place, score in known if score is not None and score.to_full is not None]
    if not found:
        return False
    at, value = [place for place, _ in found], [one.difference for _, one in found]
    reach = [[one.difference - one.low for _, one in found], [one.high - one.difference for _, one in found]]
    x, y = (value, at) if across else (at, value)
    axes.errorbar(
        x,
        y,
        xerr=reach if across else None,
        yerr=None if across else reach,
        fmt="o",
        color=style.GREEN,
        markerfacecolor="none",
        markersize=8,
        elinewidth=1,
        capsize=3,
        zorder=5,
        label="test split, 95 % interval",
    )
    return True


def _name_axis(axes: Axes, points: Sequence[_Point]) -> None:
    """Label the x axis with the candidates' names; where they are too many, with every second, third, ... of them."""
    every = max(1, -(-len(points) // 24))
    shown = points[::every]
    axes.set_xticks(
        [point.at for point in shown],
        [shorten(str(point.kept), _LONGEST_LABEL) for point in shown],
        rotation=60,
        ha="right",
        rotation_mode="anchor",
    )
    axes.set_xlabel("layers that keep their LoRA")


def save_sweep_figure(task: str, record: TaskRecord, folder: Path, formats: Iterable[str] = FORMATS) -> list[Path]:
    """Draw a task's sweep into `folder` as `sweep-<task>.png`, ...; return the paths."""
    return save_figure(sweep_figure(task, record), folder / f"sweep-{file_name(task)}", formats)
