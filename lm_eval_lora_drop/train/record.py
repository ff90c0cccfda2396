"""`training.json`: what a training was, written beside its adapter, and the one reader of it; what goes before it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import write_atomically
from lm_eval_lora_drop.record.plain import plain

FILE = "training.json"
STARTED = "started.json"
CHECKPOINTS = "checkpoints"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """What was trained on. `sha256` is over prompts and answers in order; `doc_ids` are indices in `split`.

    Not trained on: `held_out` (a sweep's), `leaked` (they stand in an evaluated split too), `repeated`, `unfit` (too
    long, or not writable after the prompt). `cut` prompts lost their beginning to `max_length`.
    """

    task: str
    task_version: str
    split: str
    sha256: str
    doc_ids: tuple[int, ...]
    held_out: int
    leaked: int
    repeated: int
    unfit: int
    cut: int
    tokens: int
    answer_tokens: int
    first_prompt: str
    first_answer: str


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One step of the optimiser: loss per answer token, learning rate."""

    step: int
    epoch: float
    loss: float
    learning_rate: float | None


@dataclass(frozen=True, kw_only=True)
class ValidationLoss:
    """Loss per answer token of the validation documents after a step; 0 is before the first."""

    step: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """Everything needed to train the same adapter again. `settings` are `TrainingSettings`, `task` is `TaskSettings`,
    `digest` is over both, base model and data: two trainings with one digest are one training. `seconds` counts what
    was run, without what an interruption lost."""

    schema: int
    version: str
    base_model: str
    base_fingerprint: str
    num_layers: int
    trained_layers: str
    trained_parameters: int
    settings: dict[str, Any]
    task: dict[str, Any]
    data: DataRecord
    digest: str
    precision: str
    device: str
    processes: int
    seconds: float
    resumed: int
    libraries: dict[str, str]
    steps: tuple[StepRecord, ...]
    validation: tuple[ValidationLoss, ...]


def write_record(record: TrainingRecord, folder: Path) -> None:
    """Write it whole or not at all."""
    text = msgspec.json.format(msgspec.json.encode(plain(msgspec.to_builtins(record))), indent=1)
    write_atomically(folder / FILE, text + b"\n")


def read_record(folder: Path) -> TrainingRecord | None:
    """The record in an adapter's folder, None where there is none.

    Raises:
        ArgumentError: it cannot be read.
    """
    file = folder / FILE
    try:
        return msgspec.json.decode(file.read_bytes(), type=TrainingRecord)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise ArgumentError(f"{file} cannot be read as the record of a training ({error}). Move it away.") from error


def remove_training_files(folder: Path, *, keep_checkpoints: bool = False) -> None:
    """Remove from a finished adapter's folder what served the training only; a kill may have left it."""
    (folder / STARTED).unlink(missing_ok=True)
    if not keep_checkpoints:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
