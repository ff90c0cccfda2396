"""Paired tests of corpus metrics (BLEU, chrF, TER) on the logged texts.

Such a score is no mean over documents but a function of summed counts, so that is what is tested. The metric is rebuilt
from what the results file says of it (sacrebleu's signature, or lm-eval's built-in name) and must give back both scores
of the results files first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from lm_eval_lora_drop.statistics import intervals, randomisation
from lm_eval_lora_drop.statistics.clusters import Codes, cluster_codes, cluster_sums
from lm_eval_lora_drop.statistics.significance import LEVEL, PairedTest, skewed_p_values, span

Floats = NDArray[np.float64]

_BUILT_IN = {"bleu": BLEU, "chrf": CHRF, "ter": TER}


def corpus_metric(aggregation: str) -> Any | None:
    """The sacrebleu metric behind an aggregation as the results file prints it, None for any other.

    `bleu`, `chrf` and `ter` are lm-eval's, with sacrebleu's defaults; ours print sacrebleu's signature, e.g.
    `BLEU nrefs:1|case:mixed|eff:no|tok:zh|smooth:exp|version:2.6.0`.
    """
    if aggregation in _BUILT_IN:
        return _BUILT_IN[aggregation]()
    tokenizer = re.match(r"BLEU \S*\btok:([\w-]+)", aggregation)
    if tokenizer:
        return BLEU(tokenize=tokenizer[1])
    if re.match(r"CHRF \S*\bnc:6\|nw:0\b", aggregation):
        return CHRF()
    return None


def reproduces_score(metric: Any, hypotheses: Sequence[str], references: Sequence[str], score: float) -> bool:
    """Whether the rebuilt metric on the logged texts is the score of the results file."""
    return math.isclose(metric.corpus_score(hypotheses, [references]).score, score, rel_tol=1e-6, abs_tol=1e-6)


def corpus_test(
    metric: Any,
    baseline: Sequence[str],
    other: Sequence[str],
    references: Sequence[str],
    *,
    clusters: Codes | None = None,
    draws: int = randomisation.RANDOMISATION_DRAWS,
    seed: int = 0,
) -> PairedTest:
    """Whether the corpus score of `other` differs from that of `baseline`, by exchanging their outputs.

    The interval is that of a mean of per-document differences, which for a corpus score are differences of the
    jackknife's pseudo-values (Efron & Tibshirani, 1993, chapter 11): what each document adds to the score.

    Args:
        metric: a metric of sacrebleu.
        baseline, other, references: texts of the same documents.
        clusters: which documents belong together; those are exchanged together.
        draws, seed: of the randomisation, where not every exchange is tried.
    """
    left, right = (_counts(metric, texts, references) for texts in (baseline, other))
    found = totals_test(_score_of(metric), left, right, clusters=clusters, draws=draws, seed=seed)
    metric.corpus_score(["a"], [["a"]])  # the signature knows the number of references only after a score
    return replace(found, method=f"{found.method}, {type(metric).__name__} {metric.get_signature()}")


def totals_test(
    score: Callable[[Floats], Floats],
    baseline: NDArray[Any],
    other: NDArray[Any],
    *,
    clusters: Codes | None = None,
    draws: int = randomisation.RANDOMISATION_DRAWS,
    seed: int = 0,
) -> PairedTest:
    """`corpus_test` of any score that is a function of sums.

    Args:
        score: `(R, S)` sums to `(R,)` scores.
        baseline, other: `(documents, S)`, what each document adds to the sums.
        clusters, draws, seed: as of `corpus_test`.
    """
    codes = cluster_codes([None] * len(baseline)) if clusters is None else clusters
    weights = np.bincount(codes)
    left, right = cluster_sums(baseline, codes), cluster_sums(other, codes)
    test = randomisation.totals_test(score, left, right, draws=draws, seed=seed)
    one, two = (float(score(side.sum(axis=0)[None])[0]) for side in (left, right))
    differences, largest = _pseudo_differences(score, left, right)
    # Pseudo-values of whole clusters: their mean is the difference of the scores, however large each cluster is.
    interval = intervals.mean_interval(differences, span=largest, alpha=LEVEL)
    p_value = max(test.p_value, float(skewed_p_values(differences[:, None], np.ones((len(left), 1)))[0]))
    alone = (weights == 1).all()
    return PairedTest(
        difference=two - one,
        interval=intervals.agreeing(interval, two - one, p_value, alpha=LEVEL),
        p_value=p_value,
        method=f"paired randomisation{'' if alone else ' of clusters'}, {test}",
        compared=len(left),
    )


def pseudo_values(metric: Any, hypotheses: Sequence[str], references: Sequence[str]) -> Floats:
    """`(documents,)`: what each document adds to the corpus score, whose mean is the score.

    The jackknife's pseudo-values (Efron & Tibshirani, 1993, chapter 11), shifted by their bias.
    """
    counts, score = _counts(metric, hypotheses, references), _score_of(metric)
    whole = float(score(counts.sum(axis=0)[None])[0])
    values = _jackknife(score, counts)
    return np.asarray(values + (whole - values.mean()), dtype=np.float64)


def _counts(metric: Any, hypotheses: Sequence[str], references: Sequence[str]) -> Floats:
    """`(documents, S)`. sacrebleu has no public way to a document's counts; its own paired test is made of this private
    method and of that in `_score_of` as well."""
    return np.asarray(metric._extract_corpus_statistics(hypotheses, [references]), dtype=np.float64)


def _score_of(metric: Any) -> Callable[[Floats], Floats]:
    return lambda totals: np.array([metric._compute_score_from_stats(row).score for row in totals.tolist()])


def _jackknife(score: Callable[[Floats], Floats], sums: Floats) -> Floats:
    """`(units,)` pseudo-values of a score that is a function of sums; of one unit the score itself."""
    units, total = len(sums), sums.sum(axis=0)
    return units * score(total[None])[0] - (units - 1) * score(total - sums)


def _pseudo_differences(score: Callable[[Floats], Floats], left: Floats, right: Floats) -> tuple[Floats, float]:
    """`(units,)` differences of the jackknife's pseudo-values, and the largest that a unit can have."""
    units = len(left)
    if units < 2:
        return np.zeros(units), 0.0
    differing = (left != right).any(axis=1)
    sides = [_jackknife(score, side) for side in (left, right)]
    differences = np.where(differing, sides[1] - sides[0], 0.0)
    if differing.any():
        # Equal documents are no difference, and the mean over all is the difference of the scores; the little that is
        # missing to that is shared out among the documents that differ.
        whole = score(right.sum(axis=0)[None])[0] - score(left.sum(axis=0)[None])[0]
        differences[differing] += (units * whole - differences.sum()) / differing.sum()
    return differences, span(np.concatenate(sides))
