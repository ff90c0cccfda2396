"""The check before trust: it passes where the passes agree and fails where the shared pass is made wrong."""

import dataclasses
from functools import partial

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from benchmarks.matrix_cases import family_cases
from benchmarks.matrix_run import CRASH, WRONG, run_case
from lm_eval_lora_drop.engine import check as check_module
from lm_eval_lora_drop.engine.check import check_shared, choose_candidates, choose_documents
from lm_eval_lora_drop.engine.plain import plain_runner
from lm_eval_lora_drop.engine.shared import shared_runner
from lm_eval_lora_drop.engine.states import branching
from lm_eval_lora_drop.sweep.backend import Work
from lm_eval_lora_drop.variant import Variant
from testing import tiny
from testing.tiny import make_adapter
from tests.engine.test_architectures import LAYERS, asked, model
from tests.engine.test_shared import choosing, documents, generating, load
from tests.engine.test_variants import answers

BELOW = [Variant.below(k, LAYERS) for k in range(LAYERS, -1, -1)]


def below_four():
    return [Variant.below(k, 4) for k in range(4, -1, -1)]


def check(lm, documents, candidates=BELOW, layers=None):
    layers = layers or lm.layers
    return check_shared(
        lm, layers, partial(shared_runner, lm, layers), plain_runner(lm, lm.layers), documents, candidates
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_passes_where_the_passes_agree_and_its_answers_are_the_plain_ones(tiny_base, tiny_adapter, dtype):
    lm = load(tiny_base, tiny_adapter, dtype=dtype)
    candidates = below_four()
    taken = choose_candidates(candidates)
    for docs in (generating(max_gen_toks=check_module.TOKENS), choosing()):
        found = check(lm, docs, candidates)
        assert found.passed, str(found)
        assert found.loglikelihoods > 0
        assert found.largest <= 1e-3 or dtype == "bfloat16"
        spoken = docs[0].requests[0].request_type == "generate_until"
        answered = taken[: check_module.GENERATING_CANDIDATES] if spoken else taken
        work = [Work(document, answered) for document in choose_documents(docs)]
        if dtype == "float32" and spoken:
            assert {(str(a.variant), a.document.doc_id): a.responses for a in found.answers} == answers(
                plain_runner(lm, lm.layers), work
            )
            assert found.tokens > 0
        assert {(a.variant, a.document.doc_id) for a in found.answers} == {
            (v, w.document.doc_id) for v in answered for w in work
        }
        assert lm.batch_size_per_gpu == 5


def test_of_long_answers_the_beginning_is_compared_and_none_is_used(tiny_base, tiny_adapter):
    """An answer cut for the check must never stand for the document's own."""
    lm = load(tiny_base, tiny_adapter)
    long = generating(until=["never said"], max_gen_toks=None, max_new_tokens=40)
    plain, seen = plain_runner(lm, lm.layers), set()

    def watched(work):
        seen.update(r.args[1]["max_gen_toks"] for w in work for r in w.document.requests if isinstance(r.args[1], dict))
        return plain(work)

    found = check_shared(lm, lm.layers, partial(shared_runner, lm, lm.layers), watched, long, below_four())
    assert found.passed, str(found)
    assert found.answers == ()
    assert seen == {check_module.TOKENS}
    assert min(found.tokens, found.loglikelihoods) > 0
    asked = [request.args[1] for document in long for request in document.requests]
    assert all(kwargs["max_new_tokens"] == 40 for kwargs in asked)


# Decoders of speech that Transformers has as causal models. One counts padding as text, so that both passes
# agreed on what no single prompt gets; one differs where the prompt is longer than its window.
@pytest.mark.parametrize("family", ["whisper", "moshi"])
def test_families_that_were_wrong(family, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "ARCHITECTURES", dict(tiny.ARCHITECTURES))
    (case,) = [case for case in family_cases() if (case.name, case.detail) == (family, "all linear")]
    torch.manual_seed(0)
    found = run_case(case, tmp_path)
    assert {kind: one["what"] for kind, one in found.items()}["generate_until"] == "plain by check"
    assert not {one["what"] for one in found.values()} & {WRONG, CRASH}


@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood"])
def test_a_model_that_looks_ahead_where_nothing_is_padded(tiny_base, tiny_adapter, kind):
    """As Doge in Transformers 5.17: without a mask its attention is not causal. The plain pass differs from itself with
    the shape of the batch, by more than any rounding; that must not excuse the shared pass."""

    def looks_ahead(module, query, key, value, attention_mask, **kwargs):
        kwargs["is_causal"] = False
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("looks_ahead", looks_ahead)
    AttentionMaskInterface.register("looks_ahead", sdpa_mask)
    lm = load(tiny_base, tiny_adapter)
    documents = generating() if kind == "generate_until" else choosing()
    found = check(lm, documents, below_four())
    assert found.passed
    assert found.unsteady is None
    lm.model.get_base_model().set_attn_implementation("looks_ahead")
    found = check(lm, documents, below_four())
    assert not found.passed
    assert "batch_size=1" in found.unsteady
    assert found.to_json()["warnings"] == [found.unsteady]
    assert found.error or found.differences[0].by > found.differences[0].allowed


@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood"])
def test_an_adapter_that_changes_nothing_is_told(tiny_base, tiny_adapter, kind):
    lm = load(tiny_base, tiny_adapter)
    documents = generating() if kind == "generate_until" else choosing()
    candidates = below_four()
    assert check(lm, documents, candidates).idle is None
    for name, parameter in lm.model.named_parameters():
        if "lora_B" in name:
            parameter.data.mul_(1e-7)
    found = check(lm, documents, candidates)
    assert found.passed
    assert "not applied" in found.idle
    assert found.to_json()["warnings"] == [found.idle]
    # Without both ends there is nothing to compare.
    assert check(lm, documents, candidates[1:]).idle is None


def test_a_prompt_of_white_space_is_no_reason_to_fail(tiny_base, tiny_adapter):
    """The harness refuses such a context for a log-likelihood, which the check asks of what was generated."""
    lm = load(tiny_base, tiny_adapter)
    settings = {"until": ["q"], "max_gen_toks": 8}
    found = check(
        lm, documents("generate_until", [[(prompt, settings)] for prompt in (" ", "\n\n", "a")]), below_four()
    )
    assert found.passed
    assert found.tokens > 0
    assert found.loglikelihoods == 0


def test_of_two_adapters_one_is_compared_with_the_base_model(tiny_base, tiny_adapter, tmp_path):
    lm = load(tiny_base, tiny_adapter)
    lm.model.load_adapter(str(make_adapter(tiny_base, tmp_path / "other", seed=7)), adapter_name="other")
    lm.layers = type(lm.layers).of(lm.model)
    full = Variant.full(4)
    found = check(lm, choosing(), [full, dataclasses.replace(full, adapter="other"), Variant.base(4)])
    assert found.passed
    assert found.idle is None


def flattened_rows_taken_for_states(monkeypatch):
    monkeypatch.setattr(branching, "_rows_per_state", lambda x, states, tokens: 1)


def biases_taken_for_rows(monkeypatch):
    monkeypatch.setattr(branching, "rows_per_input", lambda lm, layers: [{} for _ in layers.decoder_layers])


@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood"])
@pytest.mark.parametrize(
    ("name", "adapter", "undo"),
    [
        ("opt", {"target_modules": ["fc1", "fc2"]}, flattened_rows_taken_for_states),
        ("mpt", {}, biases_taken_for_rows),
        ("gemma4", {"target_modules": ["q_proj", "per_layer_model_projection"]}, None),
    ],
)
def test_alone_it_finds_what_was_wrong_once(monkeypatch, tmp_path, name, adapter, undo, kind):
    lm = model(monkeypatch, tmp_path, name, adapter, batch_size=1)
    documents = asked()[kind]
    assert check(lm, documents).passed
    layers = lm.layers
    if undo is None:
        # As by the order of definition: what acts before layer 0 is taken for something above the layers.
        layers = dataclasses.replace(layers, below=(), above=layers.below)
    else:
        undo(monkeypatch)
    found = check(lm, documents, layers=layers)
    assert not found.passed
    assert found.error or found.differences[0].by > found.differences[0].allowed


def test_a_shared_pass_that_fails_does_not_pass(monkeypatch, tmp_path):
    lm = model(monkeypatch, tmp_path, "gpt_bigcode", {}, batch_size=1)
    found = check(lm, asked()["generate_until"])
    assert not found.passed
    assert "RuntimeError" in str(found)


def test_what_fails_at_two_rows_is_not_checked_and_not_trusted(tiny_base, tiny_adapter):
    """A model may answer one request at a time only: the check must not fail where the plain pass would not."""
    lm = load(tiny_base, tiny_adapter, batch_size=1)

    def one_row_only(_, args, kwargs):
        rows = len(kwargs["input_ids"] if "input_ids" in kwargs else args[0])
        if rows > 1:
            raise RuntimeError(f"one row, not {rows}")

    lm.model.get_base_model().register_forward_pre_hook(one_row_only, with_kwargs=True)
    for docs in (generating(), choosing()):
        found = check(lm, docs, below_four())
        assert not found.passed
        assert "one row, not" in str(found)


def test_a_near_tie_is_no_difference_and_another_text_is_one(tiny_base, tiny_adapter):
    """The shared pass is stood in for by answers that differ at a tie made by hand, or at none."""
    lm = load(tiny_base, tiny_adapter)
    documents = generating()[:1]
    plain = plain_runner(lm, lm.layers)
    (text,) = answers(plain, [Work(documents[0], (Variant.full(4),))])["0-3", 0]
    tokens = lm.tok_encode(text, add_special_tokens=False)

    def other_text(_, __):
        def run(work):
            for given in plain(work):
                yield [
                    dataclasses.replace(answer, responses=(lm.tok_decode([tokens[0], tokens[0] + 1]),))
                    if isinstance(answer.responses[0], str)
                    else answer
                    for answer in given
                ]

        return run

    found = check_shared(lm, lm.layers, other_text, plain, documents, [Variant.full(4)])
    assert not found.passed
    assert "from the shared pass" in str(found)
    # With bounds as wide as the logits themselves the same texts are near ties.
    before = check_module.FLOOR
    try:
        check_module.FLOOR = 1.0
        assert check_shared(lm, lm.layers, other_text, plain, documents, [Variant.full(4)]).near_ties == 2
    finally:
        check_module.FLOOR = before
