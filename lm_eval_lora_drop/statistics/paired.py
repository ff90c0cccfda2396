"""Candidates over the same documents: the differences of their scores, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lm_eval_lora_drop.statistics.aggregation import Aggregation, has_value
from lm_eval_lora_drop.statistics.clusters import Codes, cluster_codes, codes_at, draw_cluster_counts, mean_stderr
from lm_eval_lora_drop.statistics.corpus import corpus_metric, corpus_test, totals_test
from lm_eval_lora_drop.statistics.significance import PairedTest, mean_test, numbers_or_missing

MOST_JACKKNIFED = 500
"""Documents, above which a score that only its own function can compute is not computed again without each of them."""


@dataclass(frozen=True)
class Difference:
    """`value` is how much better the first is (positive is better, whatever the metric's direction)."""

    value: float
    stderr: float
    documents: int


def paired_difference(
    aggregation: Aggregation,
    first: Sequence[Any],
    second: Sequence[Any],
    *,
    sign: int,
    resamples: int,
    seed: int = 0,
    clusters: Codes | None = None,
) -> Difference:
    """Compare items of the same documents in the same order; documents that lack a value on either side are left out.

    For a mean the standard error is that of the mean of the per-document differences; for any other aggregation it is
    the standard deviation over bootstrap resamples of documents, the same ones on both sides. Clusters take the place
    of documents where there are any.

    Args:
        sign: 1 where higher is better, -1 where lower is.
        clusters: `(documents,)`, which documents belong together; None: each stands alone.
    """
    both = [place for place, (a, b) in enumerate(zip(first, second, strict=True)) if has_value(a) and has_value(b)]
    n = len(both)
    if n == 0:
        return Difference(math.nan, math.nan, 0)
    ours, theirs = [first[place] for place in both], [second[place] for place in both]
    value = sign * (aggregation.score(ours) - aggregation.score(theirs))
    codes = cluster_codes([None] * n) if clusters is None else codes_at(clusters, both)
    if codes.max() < 1:
        return Difference(value, math.nan, n)
    if aggregation.is_mean:
        differences = np.array(ours, dtype=np.float64) - np.array(theirs, dtype=np.float64)
        return Difference(value, mean_stderr(differences, codes), n)
    counts = draw_cluster_counts(codes, resamples, seed)
    resampled = aggregation.resample(ours, counts) - aggregation.resample(theirs, counts)
    return Difference(value, float(np.nanstd(resampled, ddof=1)), n)


def paired_test(
    aggregation: Aggregation, items: Sequence[Any], reference: Sequence[Any], *, clusters: Codes | None = None
) -> PairedTest | None:
    """`items` less `reference` on the documents where both have a value, by the test that `compare` makes of two runs:
    of means, or of a score that is a function of sums. Any other score is tested by the jackknife's pseudo-values.

    The difference is in the metric's own direction. None where nothing can be compared.
    """
    both = [place for place, (a, b) in enumerate(zip(items, reference, strict=True)) if has_value(a) and has_value(b)]
    if not both:
        return None
    mine, theirs = [items[place] for place in both], [reference[place] for place in both]
    codes = None if clusters is None else codes_at(clusters, both)
    found: PairedTest
    numbers = [numbers_or_missing(side) for side in (theirs, mine)] if aggregation.is_mean else [None, None]
    texts = _texts(aggregation, theirs), _texts(aggregation, mine)
    if numbers[0] is not None and numbers[1] is not None:
        found = mean_test(numbers[0], numbers[1], clusters=codes)
    elif texts[0] is not None and texts[1] is not None:
        (references, baseline), (_, other) = texts[0], texts[1]
        found = corpus_test(corpus_metric(aggregation.name), baseline, other, references, clusters=codes)
    elif aggregation.is_additive:
        sums = [aggregation.statistics(side) for side in (theirs, mine)]
        assert sums[0] is not None
        assert sums[1] is not None
        whole = np.issubdtype(sums[0].dtype, np.integer)
        found = totals_test(
            # sacrebleu insists on counts that are integers.
            lambda totals: aggregation.from_totals(np.rint(totals).astype(np.int64) if whole else totals),
            sums[0].astype(np.float64),
            sums[1].astype(np.float64),
            clusters=codes,
        )
    elif len(both) <= MOST_JACKKNIFED:
        values = [aggregation.per_document(side) for side in (theirs, mine)]
        found = replace(
            mean_test(values[0], values[1], clusters=codes),
            difference=aggregation.score(mine) - aggregation.score(theirs),
        )
    else:
        return None
    return found if np.isfinite([found.difference, *found.interval]).all() else None


def _texts(aggregation: Aggregation, items: Sequence[Any]) -> tuple[list[str], list[str]] | None:
    """(references, hypotheses) of lm-eval's own BLEU, chrF and TER, where a document has one reference."""
    if corpus_metric(aggregation.name) is None:
        return None
    columns: list[list[str]] = [[], []]
    for item in items:
        if not isinstance(item, list | tuple) or len(item) != 2:
            return None
        for column, given in zip(columns, item, strict=True):
            texts = [given] if isinstance(given, str) else given
            if not isinstance(texts, list | tuple) or len(texts) != 1 or not isinstance(texts[0], str):
                return None
            column.append(texts[0])
    return columns[0], columns[1]
