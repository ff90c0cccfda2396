"""Figures from result files, for print: what the paper's Figures 4 (metric over boundary) shows, and how all are saved.

Every figure is drawn without pyplot (no global state, no display), in the colour-blind-safe palette of Okabe and Ito
(2008), with marker shapes and line styles that tell the series apart without colour. Text from tasks is shown as it is.
The files are the same byte for byte when drawn again with the same libraries.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.schema import SweepRecord, TaskRecord
from lm_eval_lora_drop.variant import Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("png", "svg", "pdf")
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY = "#6E6E6E"

# Any: matplotlib types the keys of its settings one by one, and differently from release to release.
STYLE: Any = {
    "axes.grid": True,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "font.size": 9,
    "grid.alpha": 0.5,
    "grid.color": "#D0D0D0",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    # Long enough to show how a line is dashed.
    "legend.handlelength": 3.2,
    # A page that is not white (GitHub's dark theme) would swallow black text on a transparent ground.
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    # Without a fixed salt the identifiers inside an SVG differ from run to run.
    "svg.hashsalt": "lm-eval-lora-drop",
    # A task or metric may have a dollar sign in its name; it is no formula.
    "text.parse_math": False,
}
# The day is left out of the files, so that drawing again gives no difference.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}


def sweep_figure(task: str, record: TaskRecord) -> Figure:
    """The validation metric over the boundary K with a band of one standard error; chosen, full and base marked.

    A boundary that racing retired rests on fewer documents: it is drawn hollow.

    Args:
        task: the task's name, for the title.
        record: what is written down of the task.

    Raises:
        ArgumentError: the entry holds no sweep.
    """
    sweep = record.sweep
    if sweep is None or record.metric is None:
        raise ArgumentError(
            f"The figure of a sweep needs a task whose boundary was found by a sweep, got {task!r} with "
            f"method={record.method!r}. Evaluate it with boundary=auto."
        )
    rows = _points(record)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.7), layout="constrained")
        axes = figure.subplots()
        _draw_scores(axes, rows)
        _mark_boundaries(axes, rows, sweep, num_layers=record.num_layers)
        better = "higher is better" if record.metric.higher_is_better else "lower is better"
        axes.set_ylabel(f"{clean(shorten(record.metric.name, 30))}\n(validation documents, {better})")
        axes.set_title(clean(_sweep_title(task, rows)))
        boundary_axis(axes, record.num_layers)
        axes.legend(loc="best")
    return figure


@dataclass(frozen=True)
class _Point:
    boundary: int
    score: float
    stderr: float | None
    documents: int
    retired: bool


def _points(record: TaskRecord) -> list[_Point]:
    """The boundaries among the candidates that have a score, ascending."""
    assert record.sweep is not None
    found = []
    for row in record.sweep.candidates:
        boundary = Variant.parse(row.variant, record.num_layers).boundary
        if boundary is not None and row.score is not None:
            found.append(_Point(boundary, row.score, row.stderr, row.documents, row.retired_after is not None))
    return sorted(found, key=lambda point: point.boundary)


def _sweep_title(task: str, rows: Sequence[_Point]) -> str:
    return f"{shorten(task)}: {max((row.documents for row in rows), default=0)} validation documents"


def _draw_scores(axes: Axes, rows: Sequence[_Point]) -> None:
    at = [row.boundary for row in rows]
    score = [row.score for row in rows]
    error = [row.stderr or 0.0 for row in rows]
    axes.fill_between(
        at,
        [s - e for s, e in zip(score, error, strict=True)],
        [s + e for s, e in zip(score, error, strict=True)],
        color=SKY,
        alpha=0.3,
        linewidth=0,
        label="± 1 standard error",
    )
    axes.plot(at, score, color=BLACK, linewidth=1.2)
    scored = [row for row in rows if not row.retired]
    retired = [row for row in rows if row.retired]
    axes.plot(
        [row.boundary for row in scored],
        [row.score for row in scored],
        linestyle="none",
        marker="o",
        markersize=3.5,
        color=BLACK,
    )
    if retired:
        axes.plot(
            [row.boundary for row in retired],
            [row.score for row in retired],
            linestyle="none",
            marker="o",
            markersize=4,
            markerfacecolor="white",
            markeredgecolor=BLACK,
            label="retired early (fewer documents)",
        )


def _mark_boundaries(axes: Axes, rows: Sequence[_Point], sweep: SweepRecord, *, num_layers: int) -> None:
    chosen = Variant.parse(sweep.chosen, num_layers).boundary
    # Without the rule a reader asks why it is not the highest point.
    rule = "chosen" if sweep.select == "best" else f"chosen ({sweep.select})"
    of = {row.boundary: row for row in rows}
    marks = (
        (rule, chosen, "D", VERMILLION),
        ("full", num_layers, "s", BLUE),
        ("base", 0, "^", GREY),
    )
    for name, boundary, marker, colour in marks:
        row = None if boundary is None else of.get(boundary)
        if row is None:
            continue
        # Full is larger and below, so that both show where the whole adapter was chosen.
        axes.plot(
            [boundary],
            [row.score],
            linestyle="none",
            marker=marker,
            markersize=9 if name == "full" else 7,
            color=colour,
            zorder=4 if name == rule else 3,
            clip_on=False,
            label=f"{name}, K = {boundary}: {_with_error(row.score, row.stderr)}",
        )
    if chosen is not None and chosen in of:
        axes.axvline(chosen, color=VERMILLION, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)


def _with_error(score: float, stderr: float | None) -> str:
    """The score with two significant digits of its standard error: `35.0 ± 1.9`."""
    if not stderr:
        return f"{score:.4g}"
    decimals = max(0, 1 - math.floor(math.log10(stderr)))
    return f"{score:.{decimals}f} ± {stderr:.{decimals}f}"


def boundary_axis(axes: Axes, num_layers: int) -> None:
    """Label the x axis with the boundary K, from base (0) to full (`num_layers`)."""
    axes.set_xlim(-0.02 * num_layers, 1.02 * num_layers)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=11, integer=True, steps=[1, 2, 4, 5, 10]))
    axes.set_xlabel("boundary K (number of bottom decoder layers that keep their LoRA)")


def save_figure(figure: Figure, stem: Path, formats: Iterable[str] = ("png", "svg")) -> list[Path]:
    """Write `stem.png`, `stem.svg`, ... and return their paths; the folder is made.

    Raises:
        ArgumentError: a format that is not in `FORMATS`.
    """
    wanted = check_formats(formats)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{name}") for name in wanted]
    with mpl.rc_context(STYLE):
        for name, path in zip(wanted, paths, strict=True):
            figure.savefig(path, format=name, dpi=200, metadata=_METADATA[name])
    return paths


def check_formats(formats: Iterable[str]) -> list[str]:
    """The formats without blanks around them.

    Raises:
        ArgumentError: one that is not in `FORMATS`.
    """
    wanted = [name.strip() for name in formats]
    if unknown := [name for name in wanted if name not in FORMATS]:
        raise ArgumentError(f"A figure can be saved as {', '.join(FORMATS)}, got {', '.join(unknown)}.")
    return wanted


def save_sweep_figure(task: str, record: TaskRecord, folder: Path, formats: Iterable[str] = FORMATS) -> list[Path]:
    """Draw a task's sweep into `folder` as `sweep-<task>.png`, ...; return the paths."""
    return save_figure(sweep_figure(task, record), folder / f"sweep-{file_name(task)}", formats)


def clean(text: str) -> str:
    """Text from a task, fit to be drawn: what does not print (control characters, lone surrogates) becomes a blank."""
    return "".join(character if character.isprintable() else " " for character in text)


def shorten(text: str, length: int = 40) -> str:
    """The text, cut to `length` characters with an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "…"


def file_name(text: str) -> str:
    """A name that every file system takes: letters, digits, `_`, `.` and `-`."""
    return re.sub(r"[^\w.-]+", "_", clean(text)).strip("._")[:100] or "task"
