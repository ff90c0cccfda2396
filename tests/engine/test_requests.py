"""Requests at the edges: what the harness's own pass makes of them is what the shared pass gives."""

import gc

import pytest
import torch

from lm_eval_lora_drop.engine.evaluated import why_left_to_harness
from lm_eval_lora_drop.engine.plain import plain_runner
from lm_eval_lora_drop.engine.session import Counters
from lm_eval_lora_drop.engine.shared import shared_runner, why_not_shared
from lm_eval_lora_drop.engine.states.cache import RowCache
from lm_eval_lora_drop.sweep.backend import Work
from tests.engine.test_shared import answers, below, documents, generating, load, same_numbers


@pytest.fixture(scope="module")
def llama(tiny_base, tiny_adapter):
    return load(tiny_base, tiny_adapter)


def test_new_tokens_in_the_generation_config_win_over_the_request(llama, monkeypatch):
    monkeypatch.setattr(llama.model.generation_config, "max_new_tokens", 3)
    docs = generating(until=[])
    assert "max_new_tokens" in why_not_shared(llama, llama.layers, docs)
    assert "max_new_tokens" in why_left_to_harness(llama, [docs[0].requests[0]])


def test_an_empty_prompt_beside_others_is_left_to_the_harness(llama):
    docs = documents("generate_until", [[("", {"until": ["q"]})], [("a", {"until": ["q"]})]])
    assert "no tokens" in why_not_shared(llama, llama.layers, docs)
    assert "no tokens" in why_left_to_harness(llama, [document.requests[0] for document in docs])


def test_a_rolling_request_for_nothing_adds_up_to_nothing(llama):
    docs = documents("loglikelihood_rolling", [[("",)], [("the text",), ("",)]])
    found = answers(shared_runner(llama, llama.layers), [Work(document, below(0, 4)) for document in docs])
    plain = answers(plain_runner(llama, llama.layers), [Work(docs[1], below(0, 4))])
    assert found[4, 0] == found[0, 0] == (0.0,)
    same_numbers(plain, {key: found[key] for key in plain})


def test_a_continuation_longer_than_the_model_is_refused_as_the_harness_refuses_it(tiny_base, tiny_adapter):
    lm = load(tiny_base, tiny_adapter, max_length=8)
    work = [Work(documents("loglikelihood", [[("a", " the question" * 20)]])[0], below(0, 4))]
    for runner in (plain_runner(lm, lm.layers), shared_runner(lm, lm.layers)):
        with pytest.raises(AssertionError):
            answers(runner, work)


def test_what_fails_while_running_is_left_to_the_plain_pass(llama, monkeypatch, caplog):
    """The shared pass fails in the middle; nothing is answered twice or not at all, and one warning says so."""
    work = [Work(document, below(0, 2, 4)) for document in generating()]
    expected = answers(plain_runner(llama, llama.layers), work)
    calls = 0
    real = RowCache.settle

    def fail(cache):
        nonlocal calls
        calls += 1
        if calls > 6:
            raise ZeroDivisionError("a bug")
        real(cache)

    monkeypatch.setattr(RowCache, "settle", fail)
    counters = Counters()
    runner = shared_runner(llama, llama.layers, 3, counters)
    assert answers(runner, work) == expected
    assert counters.fell_back == "ZeroDivisionError: a bug"
    assert answers(runner, work) == expected
    assert [record.message for record in caplog.records if "a bug" in record.message] == [
        "Falling back to the plain pass from here on (slower): ZeroDivisionError: a bug"
    ]


def test_nothing_of_a_sweep_stays_in_memory(llama):
    """Keys and values are gone when the sweep ends, without the garbage collector."""

    def wide():
        return [tensor for tensor in gc.get_objects() if isinstance(tensor, torch.Tensor) and tensor.dim() == 4]

    work = [Work(document, below(0, 2, 4)) for document in generating()]
    gc.collect()
    before = len(wide())
    gc.disable()
    try:
        answers(shared_runner(llama, llama.layers), work)
        assert len(wide()) <= before
    finally:
        gc.enable()
