"""The evaluated split: the decoder answers it only where a few requests answered both ways agree."""

import pytest
import torch

from lm_eval_lora_drop.engine import check, decode, evaluated
from lm_eval_lora_drop.engine.evaluated import CHECKED, WORTH, answer_requests
from tests.engine.test_shared import generating, load


@pytest.fixture(scope="module")
def llama(tiny_base, tiny_adapter):
    return load(tiny_base, tiny_adapter, batch_size=2)


@pytest.fixture(scope="module")
def requests():
    """Enough for the decoder to be tried: batches of `CHECKED`, for the model's own are smaller."""
    return [
        request
        for before in ("", "The answer: ", "So: ", "And: ")
        for one in generating(before)
        for request in one.requests
    ]


@pytest.fixture(autouse=True)
def decoder_wins(monkeypatch):
    """Which of two is faster is no matter for a test."""
    monkeypatch.setattr(evaluated, "is_faster", lambda ours, theirs: min(ours, theirs) > 0)


@pytest.fixture(scope="module")
def expected(llama, requests):
    return llama.harness_answers("generate_until", list(requests), disable_tqdm=True)


def shifted_positions(monkeypatch):
    """The decoder's own arithmetic made wrong: every position is three too far, from the second token on."""
    forward = decode.Decoder._forward

    def wrong(self, route, tokens, mask, positions, cache):
        return forward(self, route, tokens, mask, positions + 3 * (cache.get_seq_length() > 0), cache)

    monkeypatch.setattr(decode.Decoder, "_forward", wrong)


def asked_of_harness(lm, monkeypatch):
    """How many requests HFLM is asked to answer, call by call."""
    calls = []
    harness_answers = lm.harness_answers

    def counted(kind, requests, disable_tqdm=False):
        calls.append(len(requests))
        return harness_answers(kind, requests, disable_tqdm)

    monkeypatch.setattr(lm, "harness_answers", counted)
    return calls


def test_where_both_agree_the_decoder_answers_the_rest(llama, requests, expected, monkeypatch, caplog):
    calls = asked_of_harness(llama, monkeypatch)
    assert answer_requests(llama, requests, disable_tqdm=True) == expected
    assert calls == [CHECKED, CHECKED]
    assert len(requests) >= WORTH * CHECKED
    assert not caplog.records


def test_a_slower_decoder_answers_its_batch_and_no_more(llama, requests, expected, monkeypatch, caplog):
    monkeypatch.setattr(evaluated, "is_faster", lambda ours, theirs: False)
    calls = asked_of_harness(llama, monkeypatch)
    assert answer_requests(llama, requests, disable_tqdm=True) == expected
    assert calls == [CHECKED, CHECKED, len(requests) - 3 * CHECKED]
    assert not caplog.records


def test_where_they_part_the_harness_answers_all_and_the_log_says_why(llama, requests, expected, monkeypatch, caplog):
    shifted_positions(monkeypatch)
    calls = asked_of_harness(llama, monkeypatch)
    assert answer_requests(llama, requests, disable_tqdm=True) == expected
    assert calls == [CHECKED, len(requests) - CHECKED]
    (record,) = caplog.records
    assert "where HFLM says" in record.getMessage()
    assert "is rounding" in record.getMessage()


def test_texts_that_part_at_a_near_tie_are_no_reason(llama, requests, expected, monkeypatch, caplog):
    """With bounds as wide as the logits themselves every parting is a tie, and what the decoder says stands."""
    shifted_positions(monkeypatch)
    monkeypatch.setattr(check, "FLOOR", 100.0)
    found = answer_requests(llama, requests, disable_tqdm=True)
    assert found != expected
    assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 2 * CHECKED
    assert not caplog.records


def test_a_decoder_that_fails_is_left_to_the_harness(llama, requests, expected, monkeypatch, caplog):

    def fail(*_):
        raise torch.linalg.LinAlgError("no such thing")

    monkeypatch.setattr(decode.Decoder, "_step", fail)
    assert answer_requests(llama, requests, disable_tqdm=True) == expected
    assert "LinAlgError: no such thing" in caplog.text


def test_few_requests_are_the_harness_own(llama, requests, expected, monkeypatch):
    few = requests[: WORTH * CHECKED - 1]
    shifted_positions(monkeypatch)
    assert answer_requests(llama, few, disable_tqdm=True) == expected[: len(few)]
    assert answer_requests(llama, [], disable_tqdm=True) == []
