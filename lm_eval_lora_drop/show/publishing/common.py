"""What every form of publishing says of a run: who, on which dataset, with which interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lm_eval_lora_drop.record.runs import Score, TaskRun
from lm_eval_lora_drop.record.schema import RunRecord

Relationship = Literal["first_party", "third_party", "collaborative", "other"]
NORMAL_95 = 1.959964
"""The 97.5 % quantile of the normal distribution."""
BOUNDS: Mapping[str, tuple[float, float]] = dict.fromkeys(
    ("acc", "acc_norm", "acc_bytes", "exact_match", "em", "contains_em", "f1", "one_word"), (0.0, 1.0)
)
"""Metrics whose smallest and largest value are certain."""


@dataclass(frozen=True)
class Publisher:
    """Who publishes. `repo` is where to (owner/name), None as long as nobody has said; `now` are seconds since 1970."""

    repo: str | None
    organization: str
    relationship: Relationship
    now: float

    def model_name(self, record: RunRecord) -> str:
        """The repository, or the adapter's folder."""
        return self.repo or Path(record.adapter.path or "lora-adapter").name


@dataclass(frozen=True)
class Dataset:
    """A task's dataset, as far as its configuration says; `id` is its name on the Hub."""

    id: str | None
    config: str | None
    split: str | None
    revision: str | None

    def __str__(self) -> str:
        if self.id is None:
            return "not from the Hub"
        return f"{self.id}, {self.config}" if self.config else self.id


def dataset_of(task: TaskRun) -> Dataset:
    """From `configs` in the results file: lm-eval's own fields, or those of our loader (`data.load`)."""
    config, given = task.config, task.config.get("dataset_kwargs") or {}
    split = config.get("test_split") or config.get("validation_split") or config.get("training_split")
    path, name = config.get("dataset_path"), config.get("dataset_name")
    local = given.get("data_dir") or given.get("data_files")
    if local or path in (None, "", "json", "csv", "parquet", "text", "arrow"):
        path, name = (None, None) if local else (given.get("hub"), given.get("hub_config"))
    revision = given.get("revision") or given.get("hub_revision")
    return Dataset(*(None if part in (None, "") else str(part) for part in (path, name, split, revision)))


def interval(metric: str, score: Score) -> tuple[float, float] | None:
    """A 95 % interval, normal around the standard error and cut at the metric's bounds.

    None without a standard error, and where it is 0: documents that all score alike do not make a score certain.
    """
    if not score.stderr:
        return None
    low, high = score.value - NORMAL_95 * score.stderr, score.value + NORMAL_95 * score.stderr
    if metric in BOUNDS and BOUNDS[metric][0] <= score.value <= BOUNDS[metric][1]:
        low, high = max(low, BOUNDS[metric][0]), min(high, BOUNDS[metric][1])
    return low, high


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    """As the schemas want details: every value a text, those that are not known left out."""
    return {name: str(value) for name, value in values.items() if value is not None}
