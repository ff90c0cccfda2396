"""The tasks on the real samples."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lm_eval_lora_drop.harness.documents import Binding
from lm_eval_lora_drop.sweep import documents as validation

pytestmark = pytest.mark.data

SIZES = {
    "lora_drop_hotpotqa": {"train": 200, "validation": 139},
    "lora_drop_gsm8k": {"train": 7473, "test": 923},
    "lora_drop_samsum": {"train": 14731, "validation": 818, "test": 573},
    "lora_drop_wmt23_en_zh": {"validation": 2037, "test": 1453},
    "lora_drop_ecommerce": {"validation": 154, "test": 140},
    "lora_drop_paramed_en_zh": {"validation": 2037, "test": 716},
    "lora_drop_json": {"train": 2000, "validation": 200, "test": 500},
}
# SAMSum holds the same dialogue twice under different ids; these the leak guard of a run leaves out (see its README).
SHARED_PROMPTS = {"lora_drop_samsum": 4}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_and_disjoint_prompts(name: str, shared_data: Path, load_task: Callable[..., Any]) -> None:
    """As many rows as the files have; no validation document has the prompt of an evaluated one, but for the known."""
    task = load_task(name, data_dir=str(shared_data))
    assert {split: len(rows) for split, rows in task.dataset.items()} == SIZES[name]
    validation = task.validation_docs() if task.has_validation_docs() else task.training_docs()
    evaluated = {task.doc_to_text(doc) for doc in task.eval_docs}
    shared = sum(task.doc_to_text(doc) in evaluated for doc in validation)
    assert shared == SHARED_PROMPTS.get(name, 0)


# All documents of the split: what is left out as evaluated, as nearly so, and as drawn before, once more or nearly.
LEFT_OUT = {
    "lora_drop_samsum": {"EVALUATED": 4, "NEARLY_EVALUATED": 1, "NEARLY_TWICE": 1},
    "lora_drop_wmt23_en_zh": {"TWICE": 144, "NEARLY_TWICE": 4},
    "lora_drop_hotpotqa": {},
    "lora_drop_ecommerce": {},
    "lora_drop_json": {},
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_the_leak_guard_leaves_out(name: str, shared_data: Path, load_task: Callable[..., Any]) -> None:
    """The known pairs of SAMSum and the one with "yours" for "your house"; of different documents none."""
    task = load_task(name, data_dir=str(shared_data))
    selection = validation.select(task, 10_000, seed=0)
    assert selection is not None
    assert Counter(one.reason.name for one in selection.left_out) == LEFT_OUT[name]
    if name == "lora_drop_samsum":
        assert (47, 36) in {(one.doc_id, one.of) for one in selection.left_out}


def test_ecommerce_in_english_labels(shared_data: Path, load_task: Callable[..., Any]) -> None:
    """The paper's labels stand in prompt and answer; both rows of a dialogue are one cluster."""
    task = load_task("lora_drop_ecommerce", data_dir=str(shared_data), labels="english")
    assert {task.doc_to_target(doc) for doc in task.eval_docs} == {"Yes", "No"}
    assert "只回答“Yes”或“No”。" in task.doc_to_text(task.eval_docs[0])
    assert task.process_results(task.eval_docs[0], [task.doc_to_target(task.eval_docs[0])])["acc"] == 1.0
    drawn = validation.draw(Binding(task, {}), 154, seed=0)
    assert drawn is not None
    assert set(Counter(document.cluster for document in drawn.documents).values()) <= {2, 4}


@pytest.mark.parametrize("name", SIZES)
def test_the_reference_itself_scores_full_marks(name: str, shared_data: Path, load_task: Callable[..., Any]) -> None:
    """Answering with the target gives the best value of the optimised metric, and an empty answer the worst."""
    task = load_task(name, data_dir=str(shared_data))
    best = {"rouge_l": 100.0, "bleu": 100.0}
    metric, aggregation = next(iter(task.aggregation().items()))
    docs = list(task.eval_docs)[:40]
    full = aggregation([task.process_results(doc, [_filtered(task, doc)])[metric] for doc in docs])
    assert full == pytest.approx(best.get(metric, 1.0))
    assert aggregation([task.process_results(doc, [""])[metric] for doc in docs]) == 0


def _filtered(task: Any, doc: dict[str, Any]) -> str:
    target = task.doc_to_target(doc)
    return target.split("#### ")[1] if task.config.task == "lora_drop_gsm8k" else target


def test_ecommerce_reads_the_authors_files(shared_data: Path, tmp_path: Path, load_task: Callable[..., Any]) -> None:
    """The tab-separated layout (files without suffix, or .txt) gives the same documents as the sample in JSON Lines."""
    for split, name in (("validation", "valid"), ("test", "test.txt")):
        rows = [json.loads(line) for line in (shared_data / f"ecommerce/{split}.jsonl").read_text("utf-8").splitlines()]
        lines = ["\t".join([str(row["label"]), *row["utterances"], row["response"]]) for row in rows]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    ours = load_task("lora_drop_ecommerce", data_dir=str(tmp_path))
    theirs = load_task("lora_drop_ecommerce", data_dir=str(shared_data))
    assert ours.dataset["test"].to_list() == theirs.dataset["test"].to_list()
    assert ours.dataset["validation"].to_list() == theirs.dataset["validation"].to_list()


def test_paramed_reads_as_running_text(shared_data: Path, load_task: Callable[..., Any]) -> None:
    """Chinese without the tokeniser's spaces, English without its marks; the WMT validation text is left alone."""
    task = load_task("lora_drop_paramed_en_zh", data_dir=str(shared_data))
    assert not any("@-@" in doc["source"] or "&apos;" in doc["source"] for doc in task.dataset["test"])
    assert task.dataset["test"][0].keys() == {"source", "reference"}
    wmt = load_task("lora_drop_wmt23_en_zh", data_dir=str(shared_data))
    assert task.dataset["validation"].to_list() == wmt.dataset["validation"].to_list()


def test_bleu_and_chrf_equal_the_command_line(shared_data: Path, tmp_path: Path, load_task: Callable[..., Any]) -> None:
    """The second human reference of wmt22 as a system's output, 2,037 segments, to 1e-9."""
    path = shared_data / "wmt_en_zh/wmt22_test_as_validation.jsonl"
    rows = [json.loads(line) for line in path.open(encoding="utf-8")]
    (tmp_path / "ref").write_text("".join(row["reference"] + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "hyp").write_text("".join(row["reference_b"] + "\n" for row in rows), encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", "ref", "-i", "hyp", "-m", "bleu", "chrf", "-tok", "zh", "-w", "12"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    expected = {one["name"]: one for one in json.loads(printed)}

    task = load_task("lora_drop_wmt23_en_zh", data_dir=str(shared_data))
    items = [task.process_results(row, [row["reference_b"]]) for row in rows]
    for name, theirs in (("bleu", "BLEU"), ("chrf", "chrF2")):
        score = task.aggregation()[name]([item[name] for item in items])
        assert score == pytest.approx(expected[theirs]["score"], abs=1e-9)
        assert str(task.aggregation()[name]).split(" ")[1] == expected[theirs]["signature"]


def test_hotpotqa_by_type(shared_data: Path, load_task: Callable[..., Any]) -> None:
    """The score of all is the mean of both types', weighted by their numbers: 116 bridge, 23 comparison."""
    task = load_task("lora_drop_hotpotqa", data_dir=str(shared_data))
    scores = [task.process_results(doc, [doc["answer"] if n % 3 else "x"]) for n, doc in enumerate(task.eval_docs)]
    value = {name: task.aggregation()[name]([score[name] for score in scores]) for name in scores[0]}
    assert value["em"] == pytest.approx((116 * value["em_bridge"] + 23 * value["em_comparison"]) / 139)
    assert 0 < value["em_comparison"] < 1
