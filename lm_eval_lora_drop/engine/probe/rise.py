"""Where a curve over the layers begins to rise, and how sure that is.

The method is Kneedle (Satopää et al., 2011, "Finding a 'Kneedle' in a Haystack"): with both axes scaled to 0..1, a
curve that is flat first and climbs then bends where it lies farthest below its own diagonal. It assumes no shape of the
climb (straight, ever steeper, levelling off). Where that paper takes the first peak of the distance above a threshold,
this takes the highest, because it moves least under noise; the other peaks that stand out (scipy.signal.find_peaks, by
their prominence) are named in a warning.

The *rise point* is the bend: the last layer before the curve climbs. The decoder layers up to and including it keep
their LoRA, those above it lose theirs, so K = rise point + 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import find_peaks

from lm_eval_lora_drop.text import decimals_for, number, percent

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
# Below these a curve counts as flat: its climb in probability, and in standard errors of that climb. Of 80 layers that
# differ by chance alone, the largest difference is about five standard errors.
LEAST_CLIMB = 0.01
LEAST_CLIMB_IN_ERRORS = 6.0
# A bend lies this far below the diagonal (of 1), and this many times the noise of the scaled curve.
LEAST_DISTANCE = 0.03
LEAST_DISTANCE_IN_ERRORS = 6.0
# A second bend is more than a ragged climb when the distance falls by this much, and this many errors, on both sides.
LEAST_PROMINENCE = 0.1
LEAST_PROMINENCE_IN_ERRORS = 6.0


@dataclass(frozen=True)
class Rise:
    """`layer` is the rise point, None where the curve is flat; `interval` holds it in 95 % of the resamples."""

    layer: int | None
    interval: tuple[int, int] | None
    climb: float
    climb_stderr: float
    rises: tuple[int, ...]
    warnings: tuple[str, ...] = ()

    @property
    def boundary(self) -> int | None:
        """K: the layers up to the rise point keep their LoRA."""
        return None if self.layer is None else self.layer + 1


def find_rise(curve: Floats, resamples: Floats) -> Rise:
    """The rise point of `curve`, `(L,)`: a probability after each decoder layer, a mean over documents.

    `resamples` `(R, L)` are curves of bootstrap resamples of the documents: they say how far the curve is noise.
    """
    curve = np.asarray(curve, dtype=np.float64)
    top = int(curve.argmax())
    low = int(curve[: top + 1].argmin())
    climb = float(curve[top] - curve[low])
    error = float(np.std(resamples[:, top] - resamples[:, low], ddof=1))
    if climb < LEAST_CLIMB or climb < LEAST_CLIMB_IN_ERRORS * error:
        places = decimals_for(error, climb)
        warning = (
            f"the curve is flat, or too noisy to tell: it climbs by {number(climb, places)}, with a standard error of "
            f"{number(error, places)}. "
            "Take more validation documents, or find the boundary with a sweep (boundary=auto)"
        )
        return Rise(None, None, climb, error, (), (warning,))
    noise = float(resamples.std(axis=0, ddof=1).mean()) / float(np.ptp(curve))
    least = max(LEAST_DISTANCE, LEAST_DISTANCE_IN_ERRORS * noise)
    layer = bend(curve, least)
    prominence = max(LEAST_PROMINENCE, LEAST_PROMINENCE_IN_ERRORS * noise)
    peaks = {int(peak) for peak in find_peaks(_distance(curve), height=least, prominence=prominence)[0]}
    layers = np.array([bend(resample, least) for resample in resamples])
    tail = 100 * (1 - CONFIDENCE) / 2
    first, last = np.percentile(layers, [tail, 100 - tail], method="nearest")
    interval = (int(first), int(last))
    rises = tuple(sorted(peaks | {layer}))
    return Rise(layer, interval, climb, error, rises, _warnings(layer, rises, interval, len(curve)))


def bend(curve: Floats, least_distance: float = LEAST_DISTANCE) -> int:
    """The layer where the curve lies farthest below its diagonal; 0 where it nowhere does, rising from the start."""
    distance = _distance(curve)
    layer = int(distance.argmax())
    return layer if distance[layer] >= least_distance else 0


def _distance(curve: Floats) -> Floats:
    """How far the curve lies below its diagonal, `(M,)` up to its highest layer: what falls after that is no climb."""
    height = np.ptp(curve)
    scaled = (curve - curve.min()) / height if height else np.zeros_like(curve)
    return np.asarray(np.linspace(0, 1, len(curve)) - scaled)[: int(curve.argmax()) + 1]


def _warnings(layer: int, rises: tuple[int, ...], interval: tuple[int, int], num_layers: int) -> tuple[str, ...]:
    warnings = []
    if len(rises) > 1:
        warnings.append(
            f"the curve rises several times, after the layers {', '.join(map(str, rises))}; the bend at {layer} is the "
            "sharpest"
        )
    if layer == 0:
        warnings.append("the curve rises from the first layer on: it has no flat part before the rise")
    if interval[1] - interval[0] > max(2, num_layers / 5):
        warnings.append(
            f"the curve is noisy: its rise point lies anywhere between the layers {interval[0]} and {interval[1]} "
            f"({percent(CONFIDENCE)} of bootstrap resamples). Take more validation documents"
        )
    return tuple(warnings)
