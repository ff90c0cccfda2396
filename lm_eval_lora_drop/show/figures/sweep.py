"""The figure of a sweep over the boundary K (the paper's Figure 4): the validation metric, and below it the paired
difference of each K to the full adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.schema import RunRecord, SweepRecord, TaskRecord
from lm_eval_lora_drop.show.figures import style
from lm_eval_lora_drop.show.figures.axes import boundary_axis
from lm_eval_lora_drop.show.figures.style import HOLLOW, STYLE, NotebookFigure, clean, draw_marks, shorten
from lm_eval_lora_drop.show.verdict.sweep_text import sweep_decimals
from lm_eval_lora_drop.text import with_error
from lm_eval_lora_drop.variant import Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lm_eval_lora_drop.sweep.trust import Gain

_WIDTH, _HEIGHT, _LOWER = 6.4, 3.7, 1.9
"""Inches: of the scores alone, and how much the differences add."""


@dataclass(frozen=True)
class _Point:
    at: int
    kept: Variant
    score: float
    stderr: float
    documents: int
    eliminated: bool
    label: str


def sweep_figure(task: str, record: TaskRecord, run: RunRecord | None = None) -> Figure:
    """The validation metric over K with one standard error; chosen, full and base marked.

    A candidate that racing eliminated rests on fewer documents: it is drawn hollow. The lower panel shows the paired
    differences to full with the simultaneous 95 % band (`sweep.trust.gains_over_full`), positive is better. It is left
    out where there are none: full was no candidate, or the aggregation is known to its task alone.

    Args:
        task: the task's name, for the title.
        record: of a sweep over boundaries of one adapter.
        run: what was loaded, for the names of adapter and model.

    Raises:
        ArgumentError: the record holds no sweep.
    """
    sweep, metric = record.sweep, record.metric
    if sweep is None or metric is None:
        raise ArgumentError(
            f"The figure of a sweep needs a task whose boundary was found by a sweep, got {task!r} with "
            f"method={record.method!r}. Evaluate it with boundary=auto."
        )
    points, gains = _points(record, sweep), gains_of(record)
    with mpl.rc_context(STYLE):
        figure = NotebookFigure(figsize=(_WIDTH, _HEIGHT + (_LOWER if gains else 0)), layout="constrained")
        heights = [_HEIGHT, _LOWER] if gains else [_HEIGHT]
        panels = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        _draw_scores(panels[0], points)
        _draw_smoothed(panels[0], points, sweep)
        _mark(panels[0], points, sweep)
        _draw_test(panels[0], points, record)
        better = "higher is better" if metric.higher_is_better else "lower is better"
        panels[0].set_ylabel(f"{clean(shorten(str(metric), 44))}\n(validation documents, {better})")
        documents = max((point.documents for point in points), default=0)
        panels[0].set_title(title_of(task, f"{documents} validation documents", run))
        if gains:
            lowest = panels[1]
            _draw_gains(lowest, [(point, gains[point.kept]) for point in points if point.kept in gains], sweep)
            if draw_test_differences(lowest, {str(point.kept): point.at for point in points}, record):
                lowest.set_title(f"{lowest.get_title('left')}; test split: 95 % interval", fontsize=9)
        boundary_axis(panels[-1], record.num_layers, Variant.parse(sweep.chosen, record.num_layers).boundary)
        panels[0].legend(loc="best")
    return figure


def title_of(task: str, documents: str, run: RunRecord | None) -> str:
    """Task and documents; below them adapter and model, where these are known."""
    lines = [f"{shorten(task)}: {documents}"]
    if run is not None:
        adapter = PurePath(run.adapter.path).name if run.adapter.path else "adapter"
        lines.append(f"{shorten(adapter)} on {shorten(PurePath(run.base.name).name)}")
    return "\n".join(map(clean, lines))


def gains_of(record: TaskRecord) -> dict[Variant, Gain]:
    """Every candidate's difference to full, empty where the record does not say."""
    # numpy and scipy, for which a reader of a file's record need not wait.
    from lm_eval_lora_drop.sweep.recorded import RecordedSweep
    from lm_eval_lora_drop.sweep.trust import gains_over_full

    try:
        return gains_over_full(RecordedSweep.from_record(record))
    except ArgumentError:
        return {}


def _points(record: TaskRecord, sweep: SweepRecord) -> list[_Point]:
    """The boundaries that have a score, as K grows."""
    found, decimals = [], sweep_decimals(sweep)
    for row in sweep.candidates:
        kept = Variant.parse(row.variant, record.num_layers)
        if row.score is not None and kept.boundary is not None:
            label = f"{kept.label}: {with_error(row.score, row.stderr, decimals)}"
            eliminated = row.eliminated_after is not None
            found.append(_Point(kept.boundary, kept, row.score, row.stderr or 0.0, row.documents, eliminated, label))
    return sorted(found, key=lambda point: point.at)


def _draw_scores(axes: Axes, points: Sequence[_Point]) -> None:
    at = [point.at for point in points]
    low, high = ([point.score + sign * point.stderr for point in points] for sign in (-1, 1))
    axes.fill_between(at, low, high, color=style.SKY, alpha=0.3, linewidth=0, label="± 1 standard error")
    axes.plot(at, [point.score for point in points], color=style.BLACK, linewidth=1.2)
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


def _draw_smoothed(axes: Axes, points: Sequence[_Point], sweep: SweepRecord) -> None:
    """The curve by which a rule that smooths decides."""
    # Where candidates lack values, the rule counts these as the worst, which the points do not show.
    if not sweep.select.startswith("smooth") or len(points) < 3 or len({row.unscored for row in sweep.candidates}) > 1:
        return
    from lm_eval_lora_drop.sweep.select import local_linear

    at = [point.at for point in points]
    smoothed = local_linear(np.array(at, dtype=np.float64)) @ [point.score for point in points]
    axes.plot(at, smoothed, color=style.PURPLE, linewidth=1.2, linestyle=(0, (2, 1)), label="smoothed (decides)")


def _mark(axes: Axes, points: Sequence[_Point], sweep: SweepRecord) -> None:
    # Without the rule a reader asks why it is not the highest point.
    rule = "chosen" if sweep.select == "best" else f"chosen ({sweep.select})"
    labels = {}
    for point in points:
        marks = (("full", "full", point.kept.is_full), ("base", "base", point.kept.is_base))
        for name, title, applies in (*marks, ("chosen", rule, str(point.kept) == sweep.chosen)):
            if applies:
                labels[name] = f"{title}, {point.label}"
    draw_marks(axes, [(point.kept, point.at, point.score) for point in points], sweep.chosen, labels)
    _chosen_line(axes, points, sweep)


def _chosen_line(axes: Axes, points: Sequence[_Point], sweep: SweepRecord) -> None:
    for point in points:
        if str(point.kept) == sweep.chosen:
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
            clip_on=False,
            label="test split, ± 1 standard error",
            **HOLLOW,
        )


def _draw_gains(axes: Axes, gains: Sequence[tuple[_Point, Gain]], sweep: SweepRecord) -> None:
    """Paired differences to full with the simultaneous band; full itself, which has none, is a point on the line."""
    at, value = [point.at for point, _ in gains], [gain.value for _, gain in gains]
    # Full differs from itself nowhere: its interval would only say how wide the band is where nothing differs.
    edges = [(0.0, 0.0) if point.kept.is_full else (gain.low, gain.high) for point, gain in gains]
    low, high = zip(*edges, strict=True)
    axes.axhline(0, color=style.BLUE, linewidth=0.9)
    axes.fill_between(at, low, high, color=style.SKY, alpha=0.3, linewidth=0)
    axes.plot(at, value, color=style.BLACK, linewidth=1.2, marker="o", markersize=2.5)
    for point, gain in gains:
        if str(point.kept) == sweep.chosen:
            axes.plot([point.at], [gain.value], "D", color=style.VERMILLION, markersize=6, zorder=4, clip_on=False)
    _chosen_line(axes, [point for point, _ in gains], sweep)
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
        label="test split, 95 % interval",
        **HOLLOW,
    )
    return True
