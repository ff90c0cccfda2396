"""The figure of judges against people: a panel for each criterion and judge, a point for each document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lm_eval_lora_drop.show.figures import style
from lm_eval_lora_drop.show.figures.style import STYLE, NotebookFigure, clean, shorten

Points = tuple[NDArray[Any], NDArray[Any]]
_WIDTH = 2.8
_JITTER = 0.008
"""Of the axis: integer scores fall on one another."""


def people_figure(points: Mapping[tuple[str, str], Points], *, difference: bool = False) -> Figure:
    """Draw `points[criterion, judge]`, people's scores and the judge's in percent, NaN where a judge gave none.

    `difference`: they are paired differences of two systems, from -100 to 100.
    """
    criteria, judges = (list(dict.fromkeys(key[place] for key in points)) for place in (0, 1))
    low, high = (-100.0, 100.0) if difference else (0.0, 100.0)
    rng = np.random.default_rng(0)
    with mpl.rc_context(STYLE):
        size = (_WIDTH * len(judges) + 0.5, _WIDTH * len(criteria) + 0.4)
        figure = NotebookFigure(figsize=size, layout="constrained")
        grid = figure.subplots(len(criteria), len(judges), squeeze=False, sharex=True, sharey=True)
        for (criterion, judge), (people, judged) in points.items():
            axes = grid[criteria.index(criterion), judges.index(judge)]
            x, y = (some + rng.normal(0, _JITTER * (high - low), len(some)) for some in (people, judged))
            axes.plot([low, high], [low, high], color=style.GREY, linewidth=1, linestyle="--", zorder=1)
            axes.plot(x, y, "o", color=style.BLUE, alpha=0.5, markersize=4)
            axes.set_title(clean(shorten(judge, 30)))
            axes.set_aspect("equal")
        margin = 0.03 * (high - low)
        grid[0, 0].set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin))
        what = "B - A, points" if difference else "%"
        for axes in grid[-1]:
            axes.set_xlabel(f"people ({what})")
        for criterion, row in zip(criteria, grid, strict=True):
            row[0].set_ylabel(clean(f"{shorten(criterion, 25)}: judge ({what})"))
    return figure
