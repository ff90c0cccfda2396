"""Which candidates nobody beats in everything at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pareto_front(points: Sequence[Sequence[float]]) -> list[bool]:
    """For each of `points` (higher is better in every coordinate) whether no other one dominates it: at least as good
    everywhere and better somewhere. Of equal points all are on the front or none; one with NaN is not."""
    values = np.asarray(points, dtype=np.float64)
    if not len(values):
        return []
    known = np.isfinite(values).all(axis=1)
    others = values[known]
    at_least = (others[None] >= values[:, None]).all(axis=2)
    better = (others[None] > values[:, None]).any(axis=2)
    front = known & ~np.any(at_least & better, axis=1)
    return [bool(one) for one in np.asarray(front)]
