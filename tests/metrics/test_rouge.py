"""ROUGE against rouge-score called directly, and against values worked out by hand."""

from __future__ import annotations

import pytest
from rouge_score.rouge_scorer import RougeScorer

from lm_eval_lora_drop.metrics.rouge import rouge

PAIRS = [
    ("Eric and Rob watch a stand-up.", "Eric and Rob are going to watch a stand-up on youtube."),
    ("the cats sat", "a cat was sitting"),
    ("", "something"),
    ("Bob\nwaits", "Bob is waiting for Lenny."),
    ("完全", "完全"),
]


@pytest.mark.parametrize(("prediction", "reference"), PAIRS)
def test_equals_rouge_score(prediction: str, reference: str) -> None:
    """The same F-measures as rouge-score with its stemmer, in percent."""
    direct = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score(reference, prediction)
    assert rouge(prediction, reference) == {
        "rouge_1": 100 * direct["rouge1"].fmeasure,
        "rouge_2": 100 * direct["rouge2"].fmeasure,
        "rouge_l": 100 * direct["rougeL"].fmeasure,
    }


def test_by_hand() -> None:
    """Prediction "a b d", reference "a b c d": 3 of 3 and 3 of 4 unigrams, 1 of 2 and 1 of 3 bigrams, LCS of 3."""
    scores = rouge("a b d", "a b c d")
    assert scores["rouge_1"] == pytest.approx(100 * 2 * 3 / (3 + 4))
    assert scores["rouge_2"] == pytest.approx(100 * 2 * 1 / (2 + 3))
    assert scores["rouge_l"] == pytest.approx(100 * 2 * 3 / (3 + 4))
