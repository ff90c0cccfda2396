"""Tasks for tests that need a harness task but no benchmark, in memory or in files, and evaluations of tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import yaml
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

ROOT = Path(__file__).parents[1]
Rows = list[dict[str, Any]]
CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_choice": "choices",
    "doc_to_target": "label",
    "generation_kwargs": None,
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
"""What makes a task one of multiple choice, over `question`, `choices` and `label`."""


def make_task(name: str = "toy", *, splits: dict[str, Rows] | None = None, **config: Any) -> ConfigurableTask:
    """A generate_until task over `question` and `answer` with exact match; `config` overrides any YAML key."""
    splits = splits or {
        split: [{"question": f"{split} question {i}?", "answer": f"answer {i}"} for i in range(size)]
        for split, size in (("train", 12), ("validation", 10), ("test", 6))
    }
    data = datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in splits.items()})
    task = ConfigurableTask(config=_settings(name, splits, {"custom_dataset": lambda **_: data, **config}))
    task.set_fewshot_seed(1234)
    return task


def write_task(folder: Path, name: str, splits: dict[str, Rows], **config: Any) -> Path:
    """The same in files, as a user has it: YAML beside its documents; returns the YAML file."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {split: folder / f"{name}-{split}.jsonl" for split in splits}
    for split, file in files.items():
        file.write_text("".join(json.dumps(row) + "\n" for row in splits[split]), encoding="utf-8")
    data = {"data_files": {split: str(file) for split, file in files.items()}}
    path = folder / f"{name}.yaml"
    settings = _settings(name, splits, {"dataset_path": "json", "dataset_kwargs": data, **config})
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def _settings(name: str, splits: dict[str, Rows], config: dict[str, Any]) -> dict[str, Any]:
    settings = {
        "task": name,
        "output_type": "generate_until",
        "test_split": "test" if "test" in splits else None,
        "validation_split": "validation" if "validation" in splits else None,
        "training_split": "train" if "train" in splits else None,
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "num_fewshot": 0,
        "metadata": {"version": 1},
        **config,
    }
    return {key: value for key, value in settings.items() if value is not None}


def evaluate(lm: Any, *tasks: Any, **kwargs: Any) -> Any:
    """Through the harness, without its default folders: reading thousands of YAML files takes longer than all else."""
    manager = TaskManager(include_defaults=False)
    return lm_eval.simple_evaluate(
        model=lm, tasks=list(tasks) or [make_task()], bootstrap_iters=0, task_manager=manager, **kwargs
    )


def evaluate_examples(base: Path, adapter: Path, task: str, *, max_gen_toks: int = 4, **model_args: Any) -> Any:
    """`lm_eval --model hf-lora-drop` of a task of ours, on two of the invented documents in docs/example_data."""
    model_args = {"pretrained": str(base), "peft": str(adapter), **model_args}
    metadata = {**model_args, "data_dir": str(ROOT / "docs" / "example_data")}  # as lm-eval puts them together
    return lm_eval.simple_evaluate(
        model="hf-lora-drop",
        model_args=model_args,
        tasks=[task],
        task_manager=TaskManager(include_path=str(ROOT / "tasks"), include_defaults=False, metadata=metadata),
        limit=2,
        device="cpu",
        metadata=metadata,
        gen_kwargs={"max_gen_toks": max_gen_toks},
        bootstrap_iters=0,
    )
