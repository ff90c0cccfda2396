"""Tasks made in memory, for tests that need a harness task but no benchmark."""

from __future__ import annotations

from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask


def make_task(
    name: str = "toy", *, splits: dict[str, list[dict[str, Any]]] | None = None, **config: Any
) -> ConfigurableTask:
    """A generate_until task over `question` and `answer` with exact match; `config` overrides any YAML key."""
    splits = splits or {
        split: [{"question": f"{split} question {i}?", "answer": f"answer {i}"} for i in range(size)]
        for split, size in (("train", 12), ("validation", 10), ("test", 6))
    }
    data = datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in splits.items()})
    settings: dict[str, Any] = {
        "task": name,
        "custom_dataset": lambda **_: data,
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
    task = ConfigurableTask(config={key: value for key, value in settings.items() if value is not None})
    task.set_fewshot_seed(1234)
    return task
