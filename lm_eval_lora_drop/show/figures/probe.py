"""Figures of a probe: what the paper's Figures 1 and 6, 2, and 5 show, from the `probe` object of a results file.

Every figure has the decoder layer on its x axis, counted from 0, and bands of one standard error over documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from lm_eval_lora_drop.show.figures import style
from lm_eval_lora_drop.show.figures.axes import layer_axis
from lm_eval_lora_drop.show.figures.style import FORMATS, STYLE, clean, file_name, save_figure, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOOKS = [
    (style.BLUE, "-", "s"),
    (style.VERMILLION, "--", "D"),
    (style.GREY, "-.", "^"),
    (style.GREEN, ":", "o"),
    (style.PURPLE, (0, (5, 1, 1, 1, 1, 1)), "v"),
    (style.ORANGE, (0, (8, 2)), "P"),
    (style.SKY, (0, (2, 1)), "X"),
    (style.BLACK, "-", "."),
]
"""Colour, line style and marker of the series, in their order."""


def save_probe_figures(
    task: str, probe: Mapping[str, Any], folder: Path, formats: Iterable[str] = FORMATS
) -> list[Path]:
    """Draw everything there is to draw into `folder` as `probe-<figure>-<task>.png`, ...; return the paths."""
    figures: dict[str, Callable[[str, Mapping[str, Any]], Figure]] = {
        "rise": rise_figure,
        "tokens": tokens_figure,
        "maximum": maximum_figure,
    }
    if len(probe["curves"]) > 1:
        figures["difference"] = difference_figure
    wanted = list(formats)
    return [
        path
        for name, draw in figures.items()
        for path in save_figure(draw(task, probe), folder / f"probe-{name}-{file_name(task)}", wanted)
    ]


def rise_figure(task: str, probe: Mapping[str, Any]) -> Figure:
    """Probability of the reference tokens by layer under each layer set, with the rise point and its interval."""
    with mpl.rc_context(STYLE):
        figure, axes = _one_panel(task, probe)
        _draw(axes, probe["curves"], lambda curve: curve["over_tokens"]["probability"])
        rise = probe["rise"]
        if rise["layer"] is not None:
            first, last = rise["interval"]
            axes.axvspan(first - 0.5, last + 0.5, color="#E5E5E5", zorder=0, label="95 % interval of the rise point")
            axes.axvline(
                rise["layer"],
                color=style.BLACK,
                linewidth=0.9,
                linestyle=(0, (4, 3)),
                zorder=1,
                label=f"rise point, layer {rise['layer']} (boundary K = {probe['boundary']})",
            )
        axes.set_ylabel(f"probability of the reference token\n(mean over the first {probe['tokens']})")
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left")
    return figure


def tokens_figure(task: str, probe: Mapping[str, Any]) -> Figure:
    """Probability of each of the first reference tokens by layer, a panel per layer set (paper, Figures 1, 6)."""
    curves = probe["curves"]
    with mpl.rc_context(STYLE):
        across = min(3, len(curves))
        down = -(-len(curves) // across)
        figure = Figure(figsize=(0.8 + 2.9 * across, 0.5 + 2.9 * down), layout="constrained")
        panels = list(figure.subplots(down, across, sharey=True, squeeze=False).flat)
        for axes in panels[len(curves) :]:
            axes.remove()
        for axes, curve in zip(panels, curves, strict=False):
            series = curve["by_token"]["probability"]
            for token, look in enumerate(_looks(probe["tokens"])):
                _line(axes, series["mean"][token], series["stderr"][token], f"token {token + 1}", *look)
            axes.set_title(clean(curve["name"]))
            axes.set_ylim(bottom=0)
            layer_axis(axes, probe["num_layers"])
        for axes in panels[::across]:
            axes.set_ylabel("probability of the reference token")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))
        figure.suptitle(_title(task, probe), fontsize=11)
    return figure


def maximum_figure(task: str, probe: Mapping[str, Any]) -> Figure:
    """Largest probability over the vocabulary, by layer, under each layer set (paper, Figure 2)."""
    with mpl.rc_context(STYLE):
        figure, axes = _one_panel(task, probe)
        _draw(axes, probe["curves"], lambda curve: curve["over_tokens"]["max_probability"])
        axes.set_ylabel(f"largest probability of any token\n(mean over the first {probe['tokens']} positions)")
        axes.legend(loc="best")
    return figure


def difference_figure(task: str, probe: Mapping[str, Any]) -> Figure:
    """Probability of the reference token minus that under the full adapter, by layer (paper, Figure 5).

    The base model is left out where there are others: its difference would flatten theirs.
    """
    others = probe["curves"][1:]
    shown = [curve for curve in others if curve["boundary"] != 0] or others
    with mpl.rc_context(STYLE):
        figure, axes = _one_panel(task, probe)
        axes.axhline(0, color=style.BLACK, linewidth=0.9, zorder=1)
        for curve, (colour, dashes, marker) in zip(shown, _looks(len(shown) + 1)[1:], strict=True):
            series = curve["probability_less_full"]["over_tokens"]
            _line(axes, series["mean"], series["stderr"], f"{curve['name']} minus full", colour, dashes, marker)
            if curve["boundary"]:
                axes.axvline(curve["boundary"] - 0.5, color=colour, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        axes.set_ylabel("difference in probability\nof the reference token")
        axes.legend(loc="best", title="dotted: LoRA dropped from here on", alignment="left")
    return figure


def _one_panel(task: str, probe: Mapping[str, Any]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 3.7), layout="constrained")
    axes = figure.subplots()
    axes.set_title(_title(task, probe))
    layer_axis(axes, probe["num_layers"])
    return figure, axes


def _title(task: str, probe: Mapping[str, Any]) -> str:
    return clean(f"{shorten(task)}: {probe['documents']} validation documents")


def _draw(axes: Axes, curves: Sequence[Mapping[str, Any]], series: Callable[[Mapping[str, Any]], Any]) -> None:
    for curve, look in zip(curves, _looks(len(curves)), strict=True):
        values = series(curve)
        _line(axes, values["mean"], values["stderr"], curve["name"], *look)


def _line(
    axes: Axes, mean: Sequence[float], stderr: Sequence[float | None], label: str, colour: str, dashes: Any, marker: str
) -> None:
    middle = np.array(mean, dtype=float)
    error = np.array([0.0 if value is None else value for value in stderr])
    layers = np.arange(len(middle))
    axes.fill_between(layers, middle - error, middle + error, color=colour, alpha=0.2, linewidth=0)
    axes.plot(
        layers,
        middle,
        color=colour,
        linestyle=dashes,
        linewidth=1.4,
        marker=marker,
        markersize=4,
        # Not at every layer, where the markers of 80 layers would run together.
        markevery=max(1, len(middle) // 12),
        label=clean(label),
    )


def _looks(count: int) -> list[tuple[str, Any, str]]:
    return [_LOOKS[index % len(_LOOKS)] for index in range(count)]
