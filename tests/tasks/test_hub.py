"""Every Hub configuration, read by the real `datasets` from a repository of the recorded schema.

The repositories are made here, with the configs, splits and columns that the datasets' Hub pages show; only their
place is another. Sources: design and README of the task folders.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset

from lm_eval_lora_drop.errors import ArgumentError

HOTPOT = {
    "id": "5a8b57f25542995d1e6f1371",
    "question": "Which river is longer, the Alpha or the Beta?",
    "answer": "the Alpha",
    "type": "comparison",
    "level": "hard",
    "supporting_facts": {"title": ["Alpha", "Beta"], "sent_id": [0, 0]},
    "context": {
        "title": ["Alpha", "Beta"],
        "sentences": [["It is 90 km long.", " It is blue."], ["It is 80 km long."]],
    },
}
EN_ZH = {"en-zh": {"en": "Good morning.", "zh": "早上好。"}}
PARAMED = {
    "document_id": "1",
    "text_1": "早上 好 。",
    "text_2": "good morning @-@ all",
    "text_1_name": "zh",
    "text_2_name": "en",
}

# Hub id: (config, file) -> rows. A file name without a config stands in no config, as on refs/convert/parquet.
REPOSITORIES: dict[str, dict[tuple[str | None, str], list[dict[str, Any]]]] = {
    "hotpotqa/hotpot_qa": {("distractor", split): [HOTPOT] for split in ("train", "validation")},
    "openai/gsm8k": {
        ("main", split): [{"question": f"2 + 2 ({split})?", "answer": "It is 4.\n#### 4"}]
        for split in ("train", "test")
    },
    "knkarthick/samsum": {
        (None, f"{split}.parquet"): [{"id": "1", "dialogue": "A: hi\nB: hello", "summary": "A and B greet."}]
        for split in ("train", "validation", "test")
    },
    "haoranxu/WMT22-Test": {("en-zh", "test"): [EN_ZH], ("zh-en", "test"): [{"zh-en": {"zh": "x", "en": "y"}}]},
    "haoranxu/WMT23-Test": {("en-zh", "test"): [EN_ZH], ("zh-en", "test"): [{"zh-en": {"zh": "x", "en": "y"}}]},
    "sentence-transformers/parallel-sentences-wikimatrix": {
        ("en-zh", "train"): [{"english": f"Sentence {n}.", "non_english": f"第{n}句。"} for n in range(2100)],
        ("en-zh", "dev"): [{"english": "Dev.", "non_english": "开发。"}],
    },
    "bigbio/paramed": {
        (None, f"{config}/{split}/0000.parquet"): [PARAMED]
        for config in ("paramed_source", "paramed_bigbio_t2t")
        for split in ("train", "validation", "test")
    },
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Puts the repositories in the Hub's place; returns the list of what is asked of it."""
    for name, files in REPOSITORIES.items():
        configs: dict[str, list[str]] = {}
        for (config, file), rows in files.items():
            path = f"{config}/{file}-00000-of-00001.parquet" if config else file
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            Dataset.from_list(rows).to_parquet(tmp_path / name / path)
            if config:
                configs.setdefault(config, []).append(f"  - split: {file}\n    path: {path}\n")
        if configs:
            card = "".join(f"- config_name: {config}\n  data_files:\n{''.join(own)}" for config, own in configs.items())
            (tmp_path / name / "README.md").write_text(f"---\nconfigs:\n{card}---\n", encoding="utf-8")
    asked: list[dict[str, Any]] = []
    original = datasets.load_dataset

    def load_dataset(path: str, **kwargs: Any) -> Any:
        asked.append({"hub": path, **kwargs})
        return original(str(tmp_path / path), cache_dir=str(tmp_path / "cache"), **{**kwargs, "revision": None})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


EXPECTED = {
    "lora_drop_hotpotqa": (
        {"train": 1, "validation": 1},
        "Context:\nAlpha: It is 90 km long. It is blue.\nBeta: It is 80 km long.\n\n"
        "Question: Which river is longer, the Alpha or the Beta?\nAnswer:",
        "the Alpha",
    ),
    "lora_drop_gsm8k": ({"train": 1, "test": 1}, "Question: 2 + 2 (test)?\nAnswer:", "It is 4.\n#### 4"),
    "lora_drop_samsum": (
        {"train": 1, "validation": 1, "test": 1},
        "Dialogue:\nA: hi\nB: hello\n\nSummary:",
        "A and B greet.",
    ),
    "lora_drop_wmt23_en_zh": (
        {"validation": 1, "test": 1},
        "Translate this from English to Chinese:\nEnglish: Good morning.\nChinese:",
        "早上好。",
    ),
    "lora_drop_paramed_en_zh": (
        {"validation": 1, "test": 1},
        "Translate this from English to Chinese:\nEnglish: good morning-all\nChinese:",
        "早上好。",
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_from_the_hub(name: str, hub: list[dict[str, Any]], load_task: Callable[..., Any]) -> None:
    """Splits, prompt and target of the one document come out as they should."""
    task = load_task(name)
    sizes, prompt, target = EXPECTED[name]
    assert {split: len(rows) for split, rows in task.dataset.items()} == sizes
    doc = task.eval_docs[0]
    assert task.doc_to_text(doc) == prompt
    assert task.doc_to_target(doc) == target
    assert hub


def test_wikimatrix_draws_2000(hub: list[dict[str, Any]], load_task: Callable[..., Any]) -> None:
    """2,000 sentence pairs of the Hub's train split; the boundary is found on wmt22."""
    task = load_task("lora_drop_wikimatrix_en_zh")
    assert {split: len(rows) for split, rows in task.dataset.items()} == {"validation": 1, "test": 2000}
    assert task.dataset["test"].column_names == ["source", "reference"]
    assert task.dataset["validation"][0] == {"source": "Good morning.", "reference": "早上好。"}
    assert [(one["hub"], one["name"]) for one in hub] == [
        ("haoranxu/WMT22-Test", "en-zh"),
        ("sentence-transformers/parallel-sentences-wikimatrix", "en-zh"),
    ]


def test_paramed_is_pinned(hub: list[dict[str, Any]], load_task: Callable[..., Any]) -> None:
    """The Parquet copy is named by a commit, not by a branch that moves, nor by the revision of the model."""
    load_task("lora_drop_paramed_en_zh", revision="of the model")
    assert [(one["hub"], one["revision"]) for one in hub] == [
        ("haoranxu/WMT22-Test", None),
        ("bigbio/paramed", "8cf894412b4020ef51aaa46b7f08483704721c8b"),
    ]


def test_ecommerce_needs_its_files(load_task: Callable[..., Any]) -> None:
    """Without a folder the message tells how to give one."""
    with pytest.raises(ArgumentError, match=r"ecommerce: this benchmark is not on the Hub.*--metadata .*data_dir"):
        load_task("lora_drop_ecommerce")


def test_a_changed_repository_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column or split that is no longer there ends in a message with what is there."""
    from lm_eval_lora_drop.metrics.data import load

    Dataset.from_list([{"text": "x"}]).to_parquet(tmp_path / "train.parquet")
    arguments = {"columns": {"text": "string"}, "folder": "quiz", "hub": str(tmp_path)}
    assert load(splits={"train": "train*"}, **arguments)["train"][0] == {"text": "x"}
    with pytest.raises(ArgumentError, match=r"no split 'test'; it has train"):
        load(splits={"test": "test*"}, **arguments)
    with pytest.raises(ArgumentError, match=r"split train: no column answer; it has text"):
        load(splits={"train": "train*"}, **{**arguments, "columns": {"answer": "string"}})
