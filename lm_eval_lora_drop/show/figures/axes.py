"""Axes over the boundary and over layers: their ticks name both ends."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from matplotlib.ticker import FixedLocator, MaxNLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STEPS = [1, 2, 4, 5, 10]


def ticks_with_ends(first: int, last: int, most: int = 11) -> list[int]:
    """About `most` round integers from `first` to `last`, both of them among these.

    A round one that would touch an end's label is left out: 0, 5, ..., 25, 32 rather than 0, 5, ..., 30, 32.
    """
    inner = MaxNLocator(nbins=max(2, most - 1), integer=True, steps=_STEPS).tick_values(first, last)
    found = sorted({int(tick) for tick in inner if first < tick < last})
    step = min((b - a for a, b in itertools.pairwise(found)), default=1)
    kept = [tick for tick in found if min(tick - first, last - tick) > 0.6 * step or step == 1]
    return sorted({first, *kept, last})


def boundary_axis(axes: Axes, num_layers: int, chosen: int | None = None) -> None:
    """Label the x axis with the boundary K, from base (0) to full (`num_layers`), the chosen one among them."""
    axes.set_xlim(-0.02 * num_layers, 1.02 * num_layers)
    ticks, apart = ticks_with_ends(0, num_layers), num_layers / 32
    if chosen is not None and apart <= min(chosen, num_layers - chosen):
        ticks = sorted({chosen, *(tick for tick in ticks if abs(tick - chosen) >= apart)})
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.set_xlabel("boundary K (number of bottom decoder layers that keep their LoRA)")


def layer_axis(axes: Axes, num_layers: int) -> None:
    """Label the x axis with the decoder layers, from 0 to the last."""
    axes.set_xlim(-0.5, num_layers - 0.5)
    axes.xaxis.set_major_locator(FixedLocator(ticks_with_ends(0, num_layers - 1, most=9)))
    axes.set_xlabel("decoder layer (from 0)")
