"""Paired tests of corpus metrics (BLEU, chrF, TER): sacrebleu's own, on the logged texts.

Such a score is no mean over documents, so neither is its test. The metric is rebuilt from what the results file says of
it (sacrebleu's signature, or lm-eval's built-in name) and must give back both scores of the results files first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.significance import PairedTest

from lm_eval_lora_drop.record.runs import Sample

INTERVAL_RESAMPLES = 1_000
_BUILT_IN = {"bleu": BLEU, "chrf": CHRF, "ter": TER}


def corpus_metric(aggregation: str) -> Any | None:
    """The sacrebleu metric behind an aggregation as the results file prints it, None where it is none.

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


def texts(samples: Sequence[Sample], metric: str) -> tuple[list[str], list[str]] | None:
    """Hypotheses and references of logged documents, None where they are no plain texts.

    lm-eval's built-in metrics log the pair (reference, hypothesis) itself; ours log counts, and score the first
    filtered output against the target, both without surrounding blanks.
    """
    hypotheses, references = [], []
    for sample in samples:
        item = sample.metrics.get(metric)
        if isinstance(item, list) and len(item) == 2 and all(isinstance(part, str) for part in item):
            reference, hypothesis = item
        elif sample.outputs and isinstance(sample.outputs[0], str):
            reference, hypothesis = sample.target.strip(), sample.outputs[0].strip()
        else:
            return None
        references.append(reference)
        hypotheses.append(hypothesis)
    return hypotheses, references


def gives_back(metric: Any, hypotheses: Sequence[str], references: Sequence[str], score: float) -> bool:
    """Whether the rebuilt metric on the logged texts is the score of the results file."""
    return math.isclose(metric.corpus_score(hypotheses, [references]).score, score, rel_tol=1e-6, abs_tol=1e-6)


def paired_test(
    metric: Any, baseline: Sequence[str], other: Sequence[str], references: Sequence[str]
) -> tuple[float, str]:
    """P-value of sacrebleu's approximate randomisation test, and its signature (trials and seed included).

    sacrebleu counts only larger differences than the observed one, so two equal systems would get the smallest p there
    is; here they get 1.
    """
    signatures, scores = PairedTest(
        [("baseline", baseline), ("other", other)], {"metric": metric}, [references], test_type="ar"
    )()
    name = next(iter(signatures))
    result: Any = scores[name][1]
    p_value = 1.0 if list(baseline) == list(other) else float(result.p_value)
    return p_value, str(signatures[name])


def difference_interval(
    metric: Any, baseline: Sequence[str], other: Sequence[str], references: Sequence[str], *, level: float, seed: int
) -> tuple[float, float]:
    """Percentile bootstrap interval of `other` minus `baseline`: both are scored on the same redrawn documents."""
    # sacrebleu has no interval of a difference; these two methods are what its own PairedTest is made of.
    one = np.asarray(metric._extract_corpus_statistics(baseline, [references]), dtype=np.float64)
    two = np.asarray(metric._extract_corpus_statistics(other, [references]), dtype=np.float64)
    count = len(references)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=INTERVAL_RESAMPLES)
    differences = [
        metric._compute_score_from_stats(right).score - metric._compute_score_from_stats(left).score
        for left, right in zip((draws @ one).tolist(), (draws @ two).tolist(), strict=True)
    ]
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
