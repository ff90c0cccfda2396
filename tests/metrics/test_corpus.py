"""Corpus metrics: additive statistics, and the very scores of sacrebleu."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF

from lm_eval_lora_drop.metrics.corpus import BLEU_ZH, CHRF2, Bleu, CorpusMetric

PREDICTIONS = ["今天天气很好。", "", "他去了 New York", "abc", "我们明天见！我们明天见！"]
REFERENCES = ["今天的天气很好。", "没有译文", "他去了纽约。", "完全不同", "我们明天见！"]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(BLEU_ZH, BLEU(tokenize="zh")), (Bleu("13a"), BLEU()), (CHRF2, CHRF())],
    ids=["zh", "13a", "chrf"],
)
def test_equals_corpus_score(ours: CorpusMetric, theirs: BLEU | CHRF) -> None:
    """Summed statistics give the score that sacrebleu gives to the corpus: this pins its private methods, too."""
    items = [ours.statistics(*pair) for pair in zip(PREDICTIONS, REFERENCES, strict=True)]
    assert ours(items) == pytest.approx(theirs.corpus_score(PREDICTIONS, [REFERENCES]).score, abs=1e-12)


@pytest.mark.parametrize("metric", [BLEU_ZH, CHRF2], ids=["bleu", "chrf"])
def test_resamples_by_their_totals(metric: CorpusMetric) -> None:
    """Scoring summed items equals scoring the resampled documents themselves."""
    items = np.array([metric.statistics(*pair) for pair in zip(PREDICTIONS, REFERENCES, strict=True)])
    draws = np.random.default_rng(0).integers(len(items), size=(50, len(items)))
    scores = metric.from_totals(items[draws].sum(axis=1))
    assert scores.shape == (50,)
    assert scores.tolist() == [metric(items[draw].tolist()) for draw in draws]
    assert scores.std() > 0


def test_the_signature_names_every_choice() -> None:
    """What the harness writes into the results file for an aggregation is its `str`, of a deep copy."""
    signature = str(copy.deepcopy(BLEU_ZH))
    assert signature.startswith("BLEU nrefs:1|case:mixed|eff:no|tok:zh|smooth:exp|version:")
    assert str(CHRF2).startswith("CHRF nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")
