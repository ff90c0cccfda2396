"""The generated task: same seed, same documents; no text in two splits; every target fits the schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def test_disjoint_and_reproducible(load_task: Callable[..., Any]) -> None:
    """Family names part the splits; the first test document is written down, so a changed generator is noticed."""
    task, again, other = (load_task("lora_drop_json", **more) for more in ({}, {}, {"data_seed": 1}))
    texts = {split: set(rows["text"]) for split, rows in task.dataset.items()}
    assert [len(texts[split]) for split in ("train", "validation", "test")] == [2000, 200, 500]
    assert not texts["train"] & texts["test"]
    assert not texts["validation"] & texts["test"]
    assert task.dataset["test"].to_list() == again.dataset["test"].to_list()
    assert task.dataset["test"].to_list() != other.dataset["test"].to_list()
    assert task.dataset["test"][0]["text"] == (
        "Order from Farid Olsen: travel mug, 24 pieces, to Florence on 17 July 2025. "
        "No hurry, the normal delivery will do."
    )


def test_targets_score_full_marks(load_task: Callable[..., Any]) -> None:
    """Every target is JSON, fits the schema and has all fields right."""
    task = load_task("lora_drop_json")
    for doc in task.dataset["test"]:
        scores = task.process_results(doc, [task.doc_to_target(doc)])
        assert (scores["json_valid"], scores["schema_valid"], scores["field_f1"]) == (1, 1, 1)
        assert all(
            str(value) in doc["text"] for name, value in json.loads(doc["fields"]).items() if name in ("name", "item")
        )
