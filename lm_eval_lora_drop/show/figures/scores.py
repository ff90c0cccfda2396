"""The figure of the layers' scores: one line a score over the decoder layers, each from its smallest to its largest."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from lm_eval_lora_drop.show.figures.axes import layer_axis
from lm_eval_lora_drop.show.figures.style import BLACK, BLUE, GREEN, STYLE, VERMILLION, clean, shorten

_LINES = ((BLACK, "-", "o"), (BLUE, "--", "s"), (VERMILLION, "-.", "^"), (GREEN, ":", "D"))


def scores_figure(task: str, scores: Mapping[str, Sequence[float]], documents: int) -> Figure:
    """The scores have units of their own, so each is drawn in a panel of its own, one above the other over the same
    layers."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 0.6 + 1.35 * len(scores)), layout="constrained")
        panels = figure.subplots(len(scores), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, values), (colour, line, marker) in zip(
            panels, scores.items(), itertools.cycle(_LINES), strict=False
        ):
            known = np.asarray(values, dtype=np.float64)
            axes.plot(range(len(known)), known, line, color=colour, marker=marker, markersize=3, linewidth=1)
            axes.set_ylabel(name)
            axes.axhline(0, color="#B0B0B0", linewidth=0.6, zorder=0)
        panels[0].set_title(clean(f"{shorten(task)}: what others choose layers by, {documents} validation documents"))
        layer_axis(panels[-1], len(next(iter(scores.values()))))
    return figure
