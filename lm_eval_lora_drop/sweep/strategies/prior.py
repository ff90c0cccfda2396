"""What the log-likelihood of the reference answers says before anything is generated: which boundaries to skip.

Only boundaries of one adapter have a prior: that the likelihood changes little from one to the next is known of no
other set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.statistics.aggregation import Floats
from lm_eval_lora_drop.variant import Variant

DOCUMENTS = 16
"""How many the likelihood is read on: it is a mean over tokens, so it varies less between documents than scores do."""
BOUNDARIES = 10
"""At about how many the likelihood is read: it changes little from one boundary to the next."""
KEPT_SHARE = 0.25
"""Of the adapter's gain in likelihood. docs/explanation/method.md has the curve: half would skip a third of
the boundaries."""


def read_at(candidates: Sequence[Variant]) -> list[Variant]:
    """The variants to read the likelihood at, in falling order: base, full and evenly spaced candidates; none where the
    candidates are not all boundaries of one adapter."""
    boundaries = _boundaries(candidates)
    if not boundaries:
        return []
    num_layers, adapter = candidates[0].num_layers, candidates[0].adapter
    ordered = sorted(boundaries, reverse=True)
    step = -(-len(ordered) // BOUNDARIES)
    read = sorted({0, num_layers, *ordered[::step], ordered[-1]}, reverse=True)
    return [Variant.below(boundary, num_layers, adapter) for boundary in read]


def skipped_by_prior(candidates: Sequence[Variant], reference: Mapping[Variant, Sequence[float]]) -> list[Variant]:
    """The candidates that `eliminated_by_prior` names, and those whose neighbours in `reference` it names both; none
    where they are not all boundaries, or where nothing would be left.

    Raises:
        ArgumentError: as `eliminated_by_prior`.
    """
    boundaries = _boundaries(candidates)
    if not boundaries:
        return []
    read = sorted(_boundaries(list(reference)))
    eliminated = set(_boundaries(eliminated_by_prior(reference)))
    found = [
        variant
        for variant, boundary in zip(candidates, boundaries, strict=True)
        if {max(k for k in read if k <= boundary), min(k for k in read if k >= boundary)} <= eliminated
    ]
    # Candidates chosen by hand may all lie below the margin: then the prior has nothing to say about which to keep.
    return found if len(found) < len(candidates) else []


def eliminated_by_prior(
    reference: Mapping[Variant, Sequence[float]], *, kept_share: float = KEPT_SHARE, error_rate: float = 0.05
) -> list[Variant]:
    """The boundaries that need not generate: those that clearly lack most of what the adapter has learned.

    The adapter's gain on a document is how much more likely, per token, full makes the reference answer than base does.
    A boundary is skipped where its own gain lies below `kept_share` of that, by a paired comparison over the documents
    (one-sided t-test, Bonferroni over the boundaries). Where the adapter does not clearly gain anything, nothing is
    skipped.

    This is a rule of thumb with a margin, not a guarantee about the task's metric: docs/explanation/method.md shows the
    curve. Full is never skipped.

    Args:
        reference: boundary -> mean log-likelihood per token of each document's reference answer, the same documents in
            the same order for every one; base and full must be among them. Documents with a value that is not finite
            are left out.

    Raises:
        ArgumentError: base or full is missing, or the lists differ in length.
    """
    variants = sorted(reference, key=lambda variant: -len(variant.kept_layers))
    if not variants or not (variants[0].is_full and variants[-1].is_base):
        raise ArgumentError(
            "the prior compares with base and full: both must be given, got "
            f"{', '.join(variant.label for variant in variants) or 'nothing'}. Read the likelihood there too."
        )
    if len({len(values) for values in reference.values()}) > 1:
        raise ArgumentError(
            "the prior needs one value per document for every boundary, got lists of unequal length. Read all "
            "boundaries on the same documents."
        )
    values = np.array([reference[variant] for variant in variants], dtype=np.float64)
    values = values[:, np.isfinite(values).all(axis=0)]
    if values.shape[1] < 2:
        return []
    critical = float(stats.t.isf(error_rate / len(variants), values.shape[1] - 1))
    gain = values - values[-1]
    if _lower_bound(gain[0], critical) <= 0:
        return []
    lacking = kept_share * gain[0] - gain
    return [
        variant
        for variant, row in zip(variants, lacking, strict=True)
        if not variant.is_full and _lower_bound(row, critical) > 0
    ]


def _boundaries(variants: Sequence[Variant]) -> list[int]:
    """Their K, none where they are not all boundaries of one adapter."""
    found = [variant.boundary for variant in variants]
    known = [boundary for boundary in found if boundary is not None]
    one_adapter = len({variant.adapter for variant in variants}) == 1
    return known if one_adapter and len(known) == len(found) else []


def _lower_bound(differences: Floats, critical: float) -> float:
    return float(differences.mean() - critical * differences.std(ddof=1) / np.sqrt(len(differences)))
