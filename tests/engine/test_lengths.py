"""Models that change with the length of a text: each request gets what HFLM says to it at batch size 1."""

import logging

import pytest
import torch
import transformers
from lm_eval.models.huggingface import HFLM

from lm_eval_lora_drop.backends.hf import LoraDropLM
from lm_eval_lora_drop.engine.check import documents_at_lengths
from lm_eval_lora_drop.engine.generation import WholeAnswers
from lm_eval_lora_drop.engine.plain import plain_runner
from lm_eval_lora_drop.engine.requests import longest, needs_own_batch, shareable
from lm_eval_lora_drop.engine.shared import why_not_shared
from lm_eval_lora_drop.engine.states.lengths import own_batch_lengths
from lm_eval_lora_drop.sweep.backend import Work
from lm_eval_lora_drop.variant import Variant
from testing import tiny
from tests.engine.test_shared import answers, below, documents
from tests.engine.test_stops import edited

BORDER = 40
NEW = 8
KS = (4, 2, 0)
LONG = {
    "rope_type": "longrope",
    "original_max_position_embeddings": BORDER,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0, 3.0, 2.0, 8.0],
    "rope_theta": 10000.0,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}


class RecomputingLlama(transformers.LlamaForCausalLM):
    """As a model from the Hub may have it: past a length of its own it shifts the positions."""

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, **kwargs):
        inputs = super().prepare_inputs_for_generation(input_ids, past_key_values=past_key_values, **kwargs)
        if input_ids.shape[1] > self.config.restart_length:
            inputs["position_ids"] = inputs["position_ids"] + 7
        return inputs


def config(kind, layers):
    sizes = {**tiny.SIZES, "max_position_embeddings": BORDER if kind == "dynamic" else 256}
    if kind == "phi3":
        return transformers.Phi3Config(
            **sizes, num_hidden_layers=layers, rope_parameters=LONG, original_max_position_embeddings=BORDER
        )
    rope = {"rope_parameters": DYNAMIC} if kind == "dynamic" else {}
    found = transformers.LlamaConfig(**sizes, num_hidden_layers=layers, **rope)
    found.restart_length = BORDER
    return found


def prompts(lm):
    """From well below the border to well above it, some just below, ragged."""
    words = " the question and the answer are in the text of the other one, 1 + 1 = a?" * 4
    tokens = lm.tok_encode(words)
    return [
        lm.tok_decode(tokens[:n]) for n in (5, 18, BORDER - NEW, BORDER - NEW + 1, BORDER - 4, BORDER, BORDER + 9, 9)
    ]


@pytest.fixture(scope="module", params=["phi3", "dynamic", "its own code"])
def models(request, tmp_path_factory):
    """Ours at batch size 3, HFLM at batch size 1, and documents on both sides of the border."""
    folder = tmp_path_factory.mktemp("lengths")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny.ARCHITECTURES, "changing", lambda layers: config(request.param, layers))
        base = tiny.make_base(folder / "base", "changing")
    adapter = tiny.make_adapter(base, folder / "adapter")
    settings = {"pretrained": str(base), "peft": str(adapter), "dtype": "float32", "device": "cpu", "max_length": 200}
    ours, theirs = LoraDropLM(**settings, boundary="auto", batch_size=3, sweep_dir=str(folder)), HFLM(**settings)
    if request.param == "its own code":
        for lm in (ours, theirs):
            lm.model.get_base_model().__class__ = RecomputingLlama
    asked = {"until": ["never said"], "max_gen_toks": NEW}
    docs = documents("generate_until", [[(prompt, asked)] for prompt in prompts(ours)])
    return ours, theirs, docs


@pytest.fixture(scope="module")
def expected(models):
    """What HFLM generates for each boundary and document."""
    _, hf, docs = models
    return theirs(hf, docs)


def theirs(hf, docs):
    found = {}
    for boundary in KS:
        with edited(hf, boundary):
            # Dynamic NTK remembers the longest text so far; a run begins without any.
            hf.model(input_ids=torch.zeros((1, 1), dtype=torch.long))
            given = getattr(hf, docs[0].requests[0].request_type)([one.requests[0] for one in docs], disable_tqdm=True)
        found.update({(boundary, one.doc_id): (answer,) for one, answer in zip(docs, given, strict=True)})
    return found


def test_the_sweep_says_what_hf_says_and_shares_what_stays_below(models, expected, caplog):
    lm, hf, docs = models
    assert own_batch_lengths(lm) == {BORDER}
    assert why_not_shared(lm, lm.layers, docs) is None
    short = [document for document in docs if longest(lm, document.requests[0]) <= BORDER]
    assert shareable(lm, docs) == short
    assert 3 < len(short) < len(docs)
    with caplog.at_level(logging.INFO):
        way = lm.prepare(docs, below(*KS))
    assert way.engine == "shared"
    assert f"{len(docs) - len(short)} of {len(docs)} documents" in caplog.text
    assert answers(way.runner, [Work(one, below(*KS)) for one in docs]) == expected
    assert answers(plain_runner(lm, lm.layers), [Work(one, below(*KS)) for one in docs]) == expected
    assert lm.batch_size_per_gpu == 3
    # The border matters: with the whole batch at once HFLM itself says something else.
    hf.batch_size_per_gpu = len(docs)
    assert theirs(hf, docs) != expected
    hf.batch_size_per_gpu = 1


def test_the_evaluated_split_says_what_hf_says(models, expected):
    """Each document three times, or there are too few requests for the decoder."""
    lm, hf, docs = models
    often = documents("generate_until", [[one.requests[0].args] for one in docs * 3])
    wanted = {(k, one.doc_id): expected[k, one.doc_id % len(docs)] for k in KS for one in often}
    if hf.model.config.rope_parameters["rope_type"] == "dynamic":  # the second of three is asked in another state
        wanted = theirs(hf, often)
    for boundary in KS:
        given = lm._answer("generate_until", [one.requests[0] for one in often], Variant.below(boundary, 4), True)
        assert given == [wanted[boundary, one.doc_id][0] for one in often]


def test_log_likelihoods_are_those_of_each_request_by_itself(models):
    lm, hf, docs = models
    pairs = [(one.requests[0].args[0], " the other text of it") for one in docs]
    docs = documents("loglikelihood", [[pair] for pair in pairs])
    expected = theirs(hf, docs)
    way = lm.prepare(docs, below(*KS))
    assert way.engine == "shared"
    for runner in (way.runner, plain_runner(lm, lm.layers)):
        found = answers(runner, [Work(one, below(*KS)) for one in docs])
        for key, ((number, greedy),) in expected.items():
            assert found[key][0][0] == pytest.approx(number, abs=1e-4)
            assert found[key][0][1] == greedy


def test_where_all_can_cross_the_plain_pass_answers_for_a_stated_reason(models):
    lm, _, docs = models
    reason = why_not_shared(lm, lm.layers, docs[-3:-1])
    assert f"past {BORDER} tokens" in reason
    assert all(needs_own_batch(lm, [one.requests[0] for one in docs[-3:-1]]))


def test_a_model_with_fixed_positions_has_no_border(tiny_base, tiny_adapter):
    lm = tiny.TinyLM(tiny_base, tiny_adapter)
    assert own_batch_lengths(lm) == frozenset()


def test_the_request_nearest_to_a_window_is_checked_and_one_that_crosses_it_compared(tmp_path):
    """Of a length that is no border: the check before trust sees both sides of it."""
    base = tiny.make_base(tmp_path / "base", "mistral_sliding")
    lm = tiny.TinyLM(base, tiny.make_adapter(base, tmp_path / "adapter"))
    asked = {"until": ["never said"], "max_gen_toks": 6}
    docs = documents("generate_until", [[(prompt, asked)] for prompt in ("a", "a b c d e f g", "a b" * 20, "a" * 30)])
    assert own_batch_lengths(lm) == frozenset()
    assert [longest(lm, one.requests[0]) for one in docs][1] in range(14, 22)
    assert documents_at_lengths(lm, docs) == [docs[1]]
    compared = {}
    whole = WholeAnswers(lm, None, lm.layers.keep, compared)
    assert 16 in whole._lengths
