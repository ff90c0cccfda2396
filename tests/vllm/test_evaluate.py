"""Whole evaluations: the tests of hf-lora-drop, run with vllm-lora-drop beside the harness's vllm."""

import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import warning_once

from lm_eval_lora_drop.backends.hf import LoraDropLM
from lm_eval_lora_drop.harness.documents import Binding
from lm_eval_lora_drop.sweep import documents as validation
from lm_eval_lora_drop.sweep.backend import Work
from lm_eval_lora_drop.variant import Variant
from testing.toy import make_task
from tests.backends import test_evaluate as hf
from tests.vllm.conftest import SMALL

TARGETS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]

BORROWED = (
    "test_a_sweep_ends_in_a_record_that_needs_nothing_else",
    "test_a_task_without_validation_documents_takes_the_default_and_says_so",
    "test_an_unknown_metric_or_filter_names_those_that_exist",
    "test_each_task_has_its_own_boundary_and_every_request_type_is_swept",
    "test_every_option_of_the_harness_behaves_as_with_hf",
    "test_requests_made_by_hand_need_a_given_boundary",
)
globals().update({name: getattr(hf, name) for name in BORROWED})


@pytest.fixture
def make(tiny_base, tiny_adapter, tmp_path, shared_engines):
    """As the fixture of the same name for hf: what it calls HFLM is the harness's VLLM here."""
    from lm_eval.models.vllm_causallms import VLLM

    from lm_eval_lora_drop.backends.vllm import VllmLoraDropLM

    def build(cls=LoraDropLM, **model_args):
        common = {"pretrained": str(tiny_base), "dtype": "float32", "max_lora_rank": 8, "max_loras": 4, **SMALL}
        if cls is HFLM:
            return VLLM(
                **common, batch_size=4, lora_target_modules=TARGETS, lora_local_path=str(tiny_adapter), **model_args
            )
        if str(model_args.get("boundary", "auto")) == "auto":
            common["sweep_dir"] = str(tmp_path / "sweeps")
        return VllmLoraDropLM(**common, batch_size=4, peft=str(tiny_adapter), **model_args)

    return build


def test_base_is_the_harness_vllm_without_an_adapter(make, tiny_base):
    from lm_eval.models.vllm_causallms import VLLM

    plain = VLLM(pretrained=str(tiny_base), dtype="float32", batch_size=4, **SMALL)
    expected = hf.evaluate(plain, make_task())["samples"]
    assert hf.evaluate(make(boundary="base"), make_task())["samples"] == expected
    assert hf.evaluate(make(boundary="full"), make_task())["samples"] != expected


def test_the_sweep_answers_as_each_given_variant_does(make):
    """Batched with others, each variant's answers are those it gives alone, to every kind of request."""
    tasks = (make_task(), hf.choice_task(), hf.rolling_task())
    lm = make(boundary="auto", sweep_limit=4)
    documents = [documents_of(task, lm) for task in tasks]
    for drawn in documents:
        variants = [
            Variant.parse(notation, 4) for notation in ("0-3", "0-1", "1-2", "0-3x0.5", "0-3r2.attention", "none")
        ]
        how = lm.prepare(drawn, variants)
        assert how.engine == "vllm"
        # Documents that lack different variants, as after a killed run.
        work = [Work(document, tuple(variants[i % 2 :])) for i, document in enumerate(drawn)]
        answers = [answer for batch in how.runner(work) for answer in batch]
        assert len(answers) == sum(len(item.variants) for item in work)
        for variant in variants[1:]:
            alone = make(layers=str(variant))
            mine = [answer for answer in answers if answer.variant == variant]
            requests = [request for answer in mine for request in answer.document.requests]
            expected = iter(getattr(alone, requests[0].request_type)(requests, disable_tqdm=True))
            for answer in mine:
                same(answer.responses, tuple(next(expected) for _ in answer.document.requests))


def documents_of(task, lm):
    prompts = dict.fromkeys(("system_instruction", "chat_template"))
    binding = Binding(task, {**prompts, "apply_chat_template": False, "fewshot_as_multiturn": False})
    return validation.draw(binding, lm.args.sweep_limit, 0).documents


def same(found, expected):
    """Equal; log-likelihoods up to the rounding that another batch brings."""
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, tuple):
            assert one == (pytest.approx(other[0], abs=1e-3), other[1])
        else:
            assert one == (pytest.approx(other, abs=1e-3) if isinstance(one, float) else other)


def test_layers_that_are_no_boundary(make):
    samples = [hf.evaluate(make(layers=layers), make_task())["samples"] for layers in ("1+3", "0-1", "none")]
    assert samples[1] == hf.evaluate(make(boundary=2), make_task())["samples"]
    assert samples[2] == hf.evaluate(make(boundary="base"), make_task())["samples"]
    assert samples[0] != samples[1] != samples[2] != samples[0]


def test_an_evaluated_document_is_never_swept(make):
    splits = {
        "test": [{"question": f"test question {i}?", "answer": "a"} for i in range(4)],
        "validation": [{"question": f"{'test' if i < 3 else 'other'} question {i}?", "answer": "a"} for i in range(8)],
    }
    results = hf.evaluate(make(boundary="auto"), make_task(splits=splits))
    entry = results["config"]["lora_drop"]["tasks"]["toy"]["validation"]
    assert len(entry["left_out"]) == 3
    assert sorted(entry["doc_ids"]) == [3, 4, 5, 6, 7]


def test_a_task_that_does_not_say_how_to_decode_is_told_that_it_samples(caplog):
    from lm_eval_lora_drop.backends.vllm import VllmLoraDropLM

    warning_once.cache_clear()
    for said in ({"do_sample": False}, {"temperature": 0.7, "do_sample": True}):
        VllmLoraDropLM.modify_gen_kwargs(said)
    assert not caplog.messages
    assert "temperature" not in VllmLoraDropLM.modify_gen_kwargs({"until": ["."]})[0]
    assert ["do_sample=False" in message for message in caplog.messages] == [True]
