"""vllm-lora-drop and hf-lora-drop on a real model and a trained adapter: the same sweep by both, answer for answer.

Both run in the environment that has vLLM, so that tokenizer and model code are the same release of Transformers.
"""

import json
from pathlib import Path

import lm_eval
import pytest
import torch
import transformers
from lm_eval.tasks import TaskManager

from lm_eval_lora_drop.backends.hf import LoraDropLM
from lm_eval_lora_drop.files import package_folder
from testing.toy import make_task
from tests.vllm.conftest import SMALL

BOUNDARIES = (30, 27, 20, 10, 0)
DOCUMENTS = 8
NEAR_TIE = 1e-3  # of two logits in fp32: less than what another order of summation changes

pytestmark = pytest.mark.smollm2


@pytest.fixture(scope="module")
def both(smollm2, shared_adapters, shared_data, tmp_path_factory):
    """For each backend and task: the results file's entry and the journal's answers by (boundary, document)."""
    from lm_eval_lora_drop.backends.vllm import VllmLoraDropLM

    manager = TaskManager(
        include_path=str(package_folder("tasks")), include_defaults=False, metadata={"data_dir": str(shared_data)}
    )
    found = {}
    for name, cls, more in (
        ("vllm", VllmLoraDropLM, {**SMALL, "max_model_len": 512}),
        ("hf", LoraDropLM, {"device": "cpu", "batch_size": 4, "max_length": 512}),
    ):
        lm = cls(
            pretrained=str(smollm2),
            peft=str(shared_adapters / "samsum-smollm2-r8"),
            dtype="float32",
            sweep_boundaries="+".join(map(str, BOUNDARIES)),
            sweep_limit=DOCUMENTS,
            sweep_dir=str(tmp_path_factory.mktemp(name)),
            **more,
        )
        for task in ("lora_drop_samsum", summaries(shared_data)):
            results = lm_eval.simple_evaluate(
                model=lm,
                tasks=[task],
                limit=1,
                gen_kwargs="max_gen_toks=32" if isinstance(task, str) else None,
                task_manager=manager,
                bootstrap_iters=0,
            )
            ((task_name, entry),) = results["config"]["lora_drop"]["tasks"].items()
            found[name, task_name] = entry, answers(entry["journal"])
    return found


def summaries(data):
    """The log-likelihood of the reference summaries."""
    rows = {}
    for split in ("validation", "test"):
        lines = (data / "samsum" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:40]
        rows[split] = [{key: json.loads(line)[key] for key in ("dialogue", "summary")} for line in lines]
    return make_task(
        "summaries",
        splits=rows,
        output_type="loglikelihood",
        doc_to_text="Dialogue:\n{{dialogue}}\n\nSummary:",
        doc_to_target=" {{summary}}",
        generation_kwargs=None,
        metric_list=[{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}],
    )


def answers(journal):
    lines = [json.loads(line) for line in Path(journal).read_text(encoding="utf-8").splitlines()[1:]]
    return {(line["variant"], line["key"]): line["responses"] for line in lines}


def test_generation_agrees(both, smollm2, shared_adapters, record_property):
    _, ours = both["vllm", "lora_drop_samsum"]
    _, theirs = both["hf", "lora_drop_samsum"]
    assert ours.keys() == theirs.keys()
    assert len(ours) == len(BOUNDARIES) * DOCUMENTS
    differing = [key for key in ours if ours[key] != theirs[key]]
    for key in differing:
        print(f"{key[0]}: vllm {ours[key]} hf {theirs[key]}")
    print(f"{len(differing)} of {len(ours)} answers differ")
    record_property("differing", len(differing))
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    for variant, key in differing:
        texts = [found[variant, key][0] for found in (ours, theirs)]
        gap = gap_where_they_part(both, tokenizer, smollm2, shared_adapters, variant, key, texts)
        print(f"{variant}: the two tokens' logits lie {gap:.1e} apart")
        assert gap < NEAR_TIE


def gap_where_they_part(both, tokenizer, smollm2, shared_adapters, variant, key, texts):
    """How far the logits of the two tokens lie apart at which two answers to one prompt part."""
    from peft import PeftModel

    from lm_eval_lora_drop.adapter.layers import AdapterLayers
    from lm_eval_lora_drop.variant import Variant

    data = shared_adapters.parent / "data" / "samsum" / "validation.jsonl"
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    journal = Path(both["hf", "lora_drop_samsum"][0]["journal"]).read_text(encoding="utf-8").splitlines()[1:]
    doc_id = next(line["doc_id"] for line in map(json.loads, journal) if line["key"] == key)
    prompt = f"Dialogue:\n{rows[doc_id]['dialogue']}\n\nSummary:"
    one, other = (tokenizer(prompt + text).input_ids for text in texts)
    same = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    base = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, shared_adapters / "samsum-smollm2-r8")
    layers = AdapterLayers.of(model)
    with layers.keep(Variant.parse(variant, layers.num_layers)), torch.no_grad():
        logits = model(torch.tensor([one[:same]])).logits[0, -1]
    return abs(float(logits[one[same]] - logits[other[same]]))


def test_log_likelihoods_agree(both):
    _, ours = both["vllm", "summaries"]
    _, theirs = both["hf", "summaries"]
    assert ours.keys() == theirs.keys()
    assert len(ours) == len(BOUNDARIES) * DOCUMENTS
    worst = 0.0
    for key, ((ours_value, ours_greedy),) in ours.items():
        ((value, greedy),) = theirs[key]
        worst = max(worst, abs(ours_value - value))
        assert ours_value == pytest.approx(value, abs=1e-3)
        assert ours_greedy == greedy
    print(f"largest difference {worst:.1e}")
    # Five models, not one.
    assert len({round(value, 2) for ((value, _),) in ours.values()}) == len(ours)


@pytest.mark.parametrize("task", ["lora_drop_samsum", "summaries"])
def test_the_same_documents_lead_to_the_same_choice(both, task):
    ours, theirs = both["vllm", task][0], both["hf", task][0]
    assert ours["validation"] == theirs["validation"]
    assert ours["variant"] == theirs["variant"]
    for one, other in zip(ours["sweep"]["candidates"], theirs["sweep"]["candidates"], strict=True):
        assert one["variant"] == other["variant"]
        for name in ("score", "stderr"):
            # Relative too: a perplexity of whole summaries is the exponential of their log-likelihoods.
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-3)
