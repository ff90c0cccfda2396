"""The figure of a study: every claim's difference with its interval, one line each."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from lm_eval_lora_drop.show.figures import style
from lm_eval_lora_drop.show.figures.style import STYLE, clean

_LOOKS = {
    "holds": (style.BLUE, "o", "holds"),
    "worse": (style.VERMILLION, "s", "worse"),
    "open": (style.GREY, "D", "inconclusive"),
}
_COLUMNS = 62


@dataclass(frozen=True)
class Bar:
    """One claim; positive is better. `outcome` is holds, worse or open, after the correction for all claims; `seeds`
    are the values of each seed, drawn where there are several."""

    label: str
    metric: str
    value: float
    interval: tuple[float, float]
    outcome: str
    seeds: tuple[float, ...] = ()


def claims_figure(bars: Sequence[Bar], right_of_zero: str = "the claim is right") -> Figure:
    """Claims from top to bottom, a panel for each metric: their units differ. The axis says what `right_of_zero` is."""
    panels = [(metric, list(group)) for metric, group in groupby(bars, key=lambda bar: bar.metric)]
    heights = [len(group) + 1 for _, group in panels]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 0.42 * sum(heights) + 1.0), layout="constrained")
        column = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        drawn: dict[str, Artist] = {}
        for axes, (metric, group) in zip(column, panels, strict=True):
            axes.axvline(0, color="black", linewidth=0.8)
            for place, bar in enumerate(group):
                colour, marker, name = _LOOKS[bar.outcome]
                reach = [[bar.value - bar.interval[0]], [bar.interval[1] - bar.value]]
                axes.errorbar(bar.value, place, xerr=reach, color=colour, capsize=2.5, linewidth=1.4)
                (drawn[name],) = axes.plot(bar.value, place, marker, color=colour, markersize=5)
                if len(bar.seeds) > 1:
                    below = [place + 0.25] * len(bar.seeds)
                    (drawn["one seed"],) = axes.plot(bar.seeds, below, "|", color=colour, markersize=6)
            axes.set_yticks(range(len(group)), ["\n".join(textwrap.wrap(clean(bar.label), _COLUMNS)) for bar in group])
            axes.tick_params(axis="y", labelsize=7.5)
            axes.set_ylim(len(group) - 0.5, -0.5)
            axes.set_xlabel(clean(f"difference in {metric}, 95 % interval (right of 0: {right_of_zero})"))
        figure.legend(list(drawn.values()), list(drawn), loc="outside lower center", ncols=len(drawn))
    return figure
