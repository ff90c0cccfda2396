"""What holds for every metric on any text whatever."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from lm_eval_lora_drop.metrics import hotpotqa, labels, shape
from lm_eval_lora_drop.metrics.corpus import BLEU_ZH, CHRF2, CorpusMetric
from lm_eval_lora_drop.metrics.fields import score_fields
from lm_eval_lora_drop.metrics.rouge import rouge

ANY_TEXT = st.text(max_size=80)  # every code point but surrogates, which no decoder gives
WORDS = st.lists(st.sampled_from(["yes", "no", "the", "Paris", "是", "否", "cats", "42", "{}", "。"]), max_size=8)
TEXT = ANY_TEXT | WORDS.map(" ".join)
BLANK = st.text(alphabet=" \n\t", max_size=4)
VALIDATOR = Draft202012Validator({"type": "object", "required": ["a"]})
PAIR_METRICS = [hotpotqa.exact_match, hotpotqa.f1, hotpotqa.contains]


@pytest.mark.parametrize("metric", PAIR_METRICS)
@settings(deadline=None, max_examples=50)
@given(prediction=TEXT, answer=TEXT, before=BLANK, after=BLANK)
def test_hotpotqa(metric, prediction, answer, before, after) -> None:
    """In [0, 1], and surrounding white space is immaterial."""
    score = metric(prediction, answer)
    assert 0 <= score <= 1
    assert metric(before + prediction + after, answer) == score


@settings(deadline=None, max_examples=50)
@given(prediction=TEXT, reference=TEXT, before=BLANK, after=BLANK)
def test_rouge(prediction, reference, before, after) -> None:
    """In [0, 100]; ROUGE-L is at most ROUGE-1; surrounding white space is immaterial."""
    scores = rouge(prediction, reference)
    assert all(0 <= score <= 100 + 1e-9 for score in scores.values())
    assert scores["rouge_l"] <= scores["rouge_1"] + 1e-9
    assert rouge(before + prediction + after, reference) == scores


@pytest.mark.parametrize("metric", [BLEU_ZH, CHRF2], ids=["bleu", "chrf"])
@settings(deadline=None, max_examples=50)
@given(pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_corpus(metric: CorpusMetric, pairs, seed) -> None:
    """In [0, 100], whatever the order of the documents."""
    items = [metric.statistics(*pair) for pair in pairs]
    score = metric(items)
    assert 0 <= score <= 100 + 1e-9
    random.Random(seed).shuffle(items)
    assert metric(items) == score


@settings(deadline=None, max_examples=50)
@given(text=TEXT, before=BLANK, after=BLANK)
def test_labels(text, before, after) -> None:
    """A label is 1, 0 or None, whatever white space is around."""
    assert labels.read_label(before + text + after) == labels.read_label(text)
    assert labels.read_label(text) in (0, 1, None)
    assert labels.is_one_word(before + text + after) == labels.is_one_word(text)


@settings(deadline=None, max_examples=50)
@given(text=TEXT, before=BLANK, after=BLANK)
def test_fields(text, before, after) -> None:
    """In [0, 1]; what fits the schema is JSON; surrounding white space is immaterial."""
    scores = score_fields(text, {"a": 1}, VALIDATOR)
    assert all(0 <= score <= 1 for score in scores.values())
    assert scores["schema_valid"] <= scores["json_valid"]
    assert score_fields(before + text + after, {"a": 1}, VALIDATOR) == scores


@settings(deadline=None, max_examples=50)
@given(text=TEXT, limit=st.integers(1, 64), chinese=st.booleans())
def test_shape(text, limit, chinese) -> None:
    """Shares are 0 or 1, lengths are not negative, and an empty text is not cut off."""
    measured = shape.shape(text, limit, chinese=chinese)
    assert {measured["cut_off"], measured["empty"]} <= {0.0, 1.0}
    assert 0 <= measured["characters" if chinese else "words"] <= len(text)
    assert measured["cut_off"] + measured["empty"] <= 1 or limit <= len(text.encode())


LONG = ["a" * 20_000, "是" * 20_000, "the " * 5_000, " " * 20_000, "1," * 10_000, '{"a": ' * 10_000, "。" * 20_000]


@pytest.mark.parametrize("text", LONG, ids=[text[:4] for text in LONG])
def test_long_outputs(text: str) -> None:
    """Tens of thousands of characters are scored like any other text."""
    assert all(0 <= metric(text, "Paris") <= 1 for metric in PAIR_METRICS)
    assert all(math.isfinite(score) for score in rouge(text, "Paris").values())
    assert BLEU_ZH([BLEU_ZH.statistics(text, "巴黎")]) <= 100
    assert CHRF2([CHRF2.statistics(text, "巴黎")]) <= 100
    assert labels.read_label(text) in (1, None)
    assert score_fields(text, {"a": 1}, VALIDATOR)["field_f1"] == 0
    assert shape.shape(text, 64)["empty"] == float(not text.strip())
