"""What the log-likelihood of the reference answers says before anything is generated: which boundaries are hopeless."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.variant import Variant

DOCUMENTS = 16
"""How many the likelihood is read on: it is a mean over tokens, so it varies less between documents than scores do."""
BOUNDARIES = 10
"""At about how many the likelihood is read: it changes little from one boundary to the next."""
KEPT_SHARE = 0.5  # docs/sweep.md has the curve: more would retire the paper's default boundary


def read_at(candidates):
    n = candidates[0].num_layers
    return [Variant.below(k, n) for k in _read_at([v.boundary for v in candidates], n)]


def hopeless(candidates, reference):
    n = candidates[0].num_layers
    found = _hopeless([v.boundary for v in candidates], {v.boundary: x for v, x in reference.items()}, n)
    return [Variant.below(k, n) for k in found]


def _read_at(candidates: Sequence[int], num_layers: int) -> list[int]:
    """The boundaries to read the likelihood at, in falling order: 0, L and evenly spaced candidates."""
    ordered = sorted(candidates, reverse=True)
    step = -(-len(ordered) // BOUNDARIES)
    return sorted({0, num_layers, *ordered[::step], ordered[-1]}, reverse=True)


def _hopeless(candidates: Sequence[int], reference: Mapping[int, Sequence[float]], num_layers: int) -> list[int]:
    """The candidates that `retire_by_prior` retires, and those whose neighbours in `reference` it retires both.

    Raises:
        ArgumentError: as `retire_by_prior`.
    """
    retired = set(retire_by_prior(reference, num_layers=num_layers))
    return [
        boundary
        for boundary in candidates
        if {max(k for k in reference if k <= boundary), min(k for k in reference if k >= boundary)} <= retired
    ]


def retire_by_prior(
    reference: Mapping[int, Sequence[float]],
    *,
    num_layers: int,
    kept_share: float = KEPT_SHARE,
    error_rate: float = 0.05,
) -> list[int]:
    """The boundaries that need not generate: those that clearly lose more than half of what the adapter has learned.

    The adapter's gain on a document is how much more likely, per token, full (K = L) makes the reference answer than
    base (K = 0) does. A boundary is retired where its own gain lies below `kept_share` of that, by a paired comparison
    over the documents (one-sided t-test, Bonferroni over the boundaries). Where the adapter does not clearly gain
    anything, nothing is retired.

    This is a rule of thumb with a margin, not a guarantee about the task's metric: docs/sweep.md shows the curves it
    rests on. Full is never retired.

    Args:
        reference: K -> mean log-likelihood per token of each document's reference answer, the same documents in the
            same order for every K; 0 and L must be among them. Documents with a value that is not finite are left out.

    Raises:
        ArgumentError: 0 or L is missing, or the lists differ in length.
    """
    boundaries = sorted(reference, reverse=True)
    if 0 not in reference or num_layers not in reference:
        raise ArgumentError(
            f"the prior compares with K = 0 and K = {num_layers}: both must be given, got {boundaries}."
        )
    if len({len(values) for values in reference.values()}) > 1:
        raise ArgumentError("the prior needs one value per document for every boundary, got lists of unequal length.")
    values = np.array([reference[boundary] for boundary in boundaries], dtype=np.float64)
    values = values[:, np.isfinite(values).all(axis=0)]
    if values.shape[1] < 2:
        return []
    critical = float(stats.t.isf(error_rate / len(boundaries), values.shape[1] - 1))
    gain = values - values[-1]
    if _lower_bound(gain[0], critical) <= 0:
        return []
    lacking = kept_share * gain[0] - gain
    return [
        boundary
        for boundary, row in zip(boundaries, lacking, strict=True)
        if boundary != num_layers and _lower_bound(row, critical) > 0
    ]


def _lower_bound(differences: np.ndarray[tuple[int], np.dtype[np.float64]], critical: float) -> float:
    return float(differences.mean() - critical * differences.std(ddof=1) / np.sqrt(len(differences)))
