"""The figure of a study's sweeps: each K's paired difference to the full adapter, a line for each training seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.figure import Figure

from lm_eval_lora_drop.show.figures import style
from lm_eval_lora_drop.show.figures.axes import boundary_axis
from lm_eval_lora_drop.show.figures.style import HOLLOW, STYLE, clean, shorten

_WIDTH, _HEIGHT = 6.4, 3.8
"""Inches."""
_DASHES = ("-", (0, (4, 2)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (6, 3)))


@dataclass(frozen=True)
class SeedCurves:
    """Differences to full of one training on one task, positive is better.

    `seeds[name]` has the validation difference of that seed at each K; `mean` that of all seeds with its 95 % interval
    over documents and seeds; `test` the same on the test split, for the K that were evaluated.
    """

    title: str
    metric: str
    num_layers: int
    seeds: Mapping[str, Mapping[int, float]]
    mean: Mapping[int, tuple[float, float, float]]
    test: Mapping[int, tuple[float, float, float]]


def seeds_figure(curves: Sequence[SeedCurves]) -> Figure:
    """A panel for each training and task; bands are pointwise, over documents and seeds."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, _HEIGHT * len(curves)), layout="constrained")
        panels = figure.subplots(len(curves), 1, squeeze=False)[:, 0]
        for axes, one in zip(panels, curves, strict=True):
            at = sorted(one.mean)
            _, low, high = zip(*(one.mean[boundary] for boundary in at), strict=True)
            axes.axhline(0, color=style.BLUE, linewidth=0.9)
            axes.fill_between(
                at, low, high, color=style.SKY, alpha=0.3, linewidth=0, label="95 % interval, documents and seeds"
            )
            for place, (name, values) in enumerate(one.seeds.items()):
                axes.plot(
                    sorted(values),
                    [values[boundary] for boundary in sorted(values)],
                    color=style.BLACK,
                    linewidth=1.1,
                    linestyle=_DASHES[place % len(_DASHES)],
                    label=clean(shorten(name)),
                )
            if one.test:
                value = [mean for mean, _, _ in one.test.values()]
                reach = [
                    [mean - low for mean, low, _ in one.test.values()],
                    [high - mean for mean, _, high in one.test.values()],
                ]
                axes.errorbar(list(one.test), value, yerr=reach, label="test split, 95 % interval", **HOLLOW)
            axes.set_title(clean(shorten(one.title, 80)))
            axes.set_ylabel(f"{clean(shorten(one.metric, 30))}:\ndifference to full (validation)")
            boundary_axis(axes, one.num_layers)
            # Below the panel: curves, band and zero line leave no corner free for every study.
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    return figure
