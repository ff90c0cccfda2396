"""Whole evaluations through the harness, on tiny models."""

import json
import shutil
from pathlib import Path

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file, save_file

from lm_eval_lora_drop.backends.hf import LoraDropLM
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.schema import from_config
from testing.records import k_of, scores_by_k
from testing.toy import CHOICE, evaluate, make_task


def choice_task(name="choices"):
    docs = [{"question": f"Question {i}", "choices": [" yes", " no", " perhaps"], "label": i % 3} for i in range(14)]
    return make_task(name, splits={"test": docs[:4], "validation": docs[4:]}, **CHOICE)


def rolling_task():
    return make_task(
        "rolling",
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{question}}",
        generation_kwargs=None,
        metric_list=[
            {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
        ],
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_fewshot": 2},
        {
            "apply_chat_template": True,
            "system_instruction": "Be brief.",
            "num_fewshot": 1,
            "fewshot_as_multiturn": True,
        },
        {"gen_kwargs": "max_gen_toks=3"},
        {"limit": 2},
        {"samples": {"toy": [1, 3]}},
        {"predict_only": True},
    ],
    ids=str,
)
def test_every_option_of_the_harness_behaves_as_with_hf(make, options):
    def run(lm):
        task = make_task(num_fewshot=None) if "num_fewshot" in options else make_task()
        results = evaluate(lm, task, **options)
        return results["results"], results["samples"]

    assert run(make(boundary="full")) == run(make(HFLM))


def test_a_sweep_ends_in_a_record_that_needs_nothing_else(make, sweep_figures):
    lm = make(boundary="auto", sweep_limit=5, sweep_seed=3)
    results = evaluate(lm)
    record = results["config"]["lora_drop"]
    entry = record["tasks"]["toy"]
    json.dumps(record)
    assert entry["method"] == "sweep"
    assert entry["validation"]["split"] == "validation"
    assert len(entry["validation"]["doc_ids"]) == len(set(entry["validation"]["doc_ids"])) == 5
    assert entry["metric"] == {"name": "exact_match", "filter": "none", "higher_is_better": True, "range": [0.0, 1.0]}
    assert list(scores_by_k(entry)) == [4, 3, 2, 1, 0]
    assert all(row["documents"] == 5 for row in entry["sweep"]["candidates"])
    assert entry["variant"] == entry["sweep"]["chosen"]
    assert entry["boundary"] == k_of(entry["variant"], 4)
    assert from_config(results["config"], "here").tasks["toy"].kept.boundary == entry["boundary"]
    assert entry["kept_parameters"] + entry["dropped_parameters"] == record["adapter"]["parameters"]
    assert entry["fingerprint"].startswith("sha256:")
    assert Path(entry["journal"]).with_suffix(".png").stat().st_size > 5000
    # What an answer took does not fall because the journal had it.
    again = evaluate(lm)["config"]["lora_drop"]["tasks"]["toy"]
    assert again["sweep"]["seconds_per_pair"] == entry["sweep"]["seconds_per_pair"] > 0


def test_each_task_has_its_own_boundary_and_every_request_type_is_swept(make):
    results = evaluate(make(boundary="auto", sweep_limit=4), make_task(), choice_task(), rolling_task())
    tasks = results["config"]["lora_drop"]["tasks"]
    assert set(tasks) == {"toy", "choices", "rolling"}
    assert {entry["method"] for entry in tasks.values()} == {"sweep"}
    assert tasks["rolling"]["metric"]["higher_is_better"] is False
    scores = scores_by_k(tasks["rolling"])
    assert len(set(scores.values())) == len(scores)
    assert scores[tasks["rolling"]["boundary"]] == min(scores.values())
    for name, entry in tasks.items():
        if name != "rolling":
            continue
        given = evaluate(make(boundary=entry["boundary"]), rolling_task())
        assert given["samples"][name] == results["samples"][name]


def test_a_task_without_validation_documents_takes_the_default_and_says_so(make, caplog):
    task = make_task(splits={"test": [{"question": "q?", "answer": "a"}] * 3})
    entry = evaluate(make(boundary="auto"), task)["config"]["lora_drop"]["tasks"]["toy"]
    assert (entry["method"], entry["boundary"]) == ("default", 2)
    assert "no boundary could be searched" in entry["warnings"][0]
    assert "sweep_task=" in entry["warnings"][0]
    assert "no boundary could be searched" in caplog.text


@pytest.mark.parametrize(
    ("metric", "message"),
    [("rouge", "There are: exact_match"), ("exact_match,strict", "There are: none"), ("exact_match:x", "got 'x'")],
)
def test_an_unknown_metric_or_filter_names_those_that_exist(make, metric, message):
    with pytest.raises(ArgumentError, match=message):
        evaluate(make(boundary="auto", sweep_metric=metric))


def test_requests_made_by_hand_need_a_given_boundary(make):
    request = Instance("generate_until", {}, ("Hello", {"until": [], "max_gen_toks": 2}), 0)
    with pytest.raises(ArgumentError, match="Give boundary=K"):
        make(boundary="auto").generate_until([request])


def test_the_probe_finds_a_boundary_and_leaves_its_curve(make):
    entry = evaluate(make(boundary="probe", sweep_limit=6))["config"]["lora_drop"]["tasks"]["toy"]
    assert (entry["method"], entry["sweep"]) == ("probe", None)
    assert len(entry["validation"]["doc_ids"]) == 6
    assert entry["probe"]["boundary"] == entry["boundary"]
    assert entry["probe"]["curves"]


def test_the_reference_likelihood_needs_no_generation(make):
    lm = make(boundary="auto", sweep_limit=10, sweep_metric="reference_loglikelihood", sweep_select="best")
    entry = evaluate(lm)["config"]["lora_drop"]["tasks"]["toy"]
    assert entry["metric"]["name"] == "reference_loglikelihood"
    scores = scores_by_k(entry)
    assert scores[entry["boundary"]] == max(scores.values())
    # Nats per token of the reference, by the harness's own log-likelihood.
    request = Instance("loglikelihood", {}, ("validation question 0?", " answer 0"), 0)
    tokens = len(lm._encode_pair(*request.args)[1])
    ((total, _),) = make(boundary=2).loglikelihood([request])
    items = next(row["items"] for row in entry["sweep"]["candidates"] if k_of(row["variant"], 4) == 2)
    assert items[entry["validation"]["doc_ids"].index(0)] == pytest.approx(total / tokens, abs=1e-5)


class TestAnswerCache:
    def run(self, lm, path, task=None):
        return evaluate(lm, task or make_task(), use_cache=str(path))

    def test_the_same_boundary_again_uses_the_cache(self, make, tmp_path):
        first = self.run(make(boundary=2), tmp_path / "answers")
        lm = make(boundary=2)
        lm.harness_answers = None  # any call of the model would fail
        assert self.run(lm, tmp_path / "answers")["samples"] == first["samples"]

    def test_another_boundary_is_refused_with_the_way_out(self, make, tmp_path):
        self.run(make(boundary=2), tmp_path / "answers")
        with pytest.raises(ArgumentError, match=r"boundary was boundary=2, now boundary=3.*another path"):
            self.run(make(boundary=3), tmp_path / "answers")

    def test_answers_of_another_model_type_are_refused(self, make, tmp_path):
        self.run(make(HFLM), tmp_path / "answers")
        with pytest.raises(ArgumentError, match="kept no record of its boundary"):
            self.run(make(boundary=3), tmp_path / "answers")

    def test_a_sweep_writes_nothing_into_it_and_its_choice_is_remembered(self, make, tmp_path):
        from sqlitedict import SqliteDict

        first = self.run(make(boundary="auto", sweep_limit=4), tmp_path / "answers")
        with SqliteDict(str(tmp_path / "answers_rank0.db")) as answers:
            # One answer for each test document and the entry of ours: nothing of the validation documents.
            assert len(answers) == 6 + 1
        lm = make(boundary="auto", sweep_limit=4)
        lm.harness_answers = None
        second = self.run(lm, tmp_path / "answers")
        assert second["samples"] == first["samples"]
        entry = second["config"]["lora_drop"]["tasks"]["toy"]
        assert entry["from_answer_cache"] is True
        assert {**entry, "from_answer_cache": False} == json.loads(
            json.dumps(first["config"]["lora_drop"]["tasks"]["toy"])
        )


def test_an_adapter_that_changes_nothing_is_warned_of_in_log_and_record(tiny_base, tiny_adapter, tmp_path, caplog):
    faint = shutil.copytree(tiny_adapter, tmp_path / "faint")
    tensors = load_file(faint / "adapter_model.safetensors")
    faded = {name: tensor * 1e-7 if "lora_B" in name else tensor for name, tensor in tensors.items()}
    save_file(faded, faint / "adapter_model.safetensors")
    for adapter, warned in ((faint, True), (tiny_adapter, False)):
        lm = LoraDropLM(
            pretrained=str(tiny_base), peft=str(adapter), device="cpu", dtype="float32", boundary="auto",
            sweep_dir=str(tmp_path / "sweeps"), batch_size=4,
        )  # fmt: skip
        caplog.clear()
        record = from_config(evaluate(lm)["config"], "here").tasks["toy"]
        assert any("The adapter is not applied" in warning for warning in record.warnings) is warned
        assert ("The adapter is not applied" in caplog.text) is warned
