"""What a study is to run: its cells in order, where each is written, what is done, and what remains to be paid."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.options import EvaluationOptions, LoraDropArgs, neutral
from lm_eval_lora_drop.record.fingerprint import digest, short
from lm_eval_lora_drop.study.config import Study, StudyChoice, StudyTask, StudyTraining
from lm_eval_lora_drop.study.trainings import adapter_folder, bytes_left, free_bytes, is_trained, megabytes
from lm_eval_lora_drop.train.record import read_record

DONE = "cell.json"
CELLS = "cells"


@dataclass(frozen=True)
class Cell:
    """One run of `lm_eval`: a task, an adapter, a choice of what to keep of it, the metric that a search optimises
    (None: the task's first). `training` is None for an adapter that the study did not train."""

    task: StudyTask
    adapter: str
    training: StudyTraining | None
    choice: StudyChoice
    metric: str | None = None

    @property
    def name(self) -> str:
        """For the terminal and the folder."""
        adapter = self.training.folder if self.training else f"{self.task.name}-{Path(self.adapter).name}"
        return f"{adapter} {self.choice}" + (f" by {self.metric}" if self.metric else "")

    @property
    def model_args(self) -> dict[str, str]:
        """What this cell adds to the study's model_args."""
        return self.choice.model_args | ({"sweep_metric": self.metric} if self.metric else {})


class Unit(NamedTuple):
    """What is done in one go, and by one worker where there are several: a training, then the cells of its adapter.
    `training` is None for an adapter that the study did not train."""

    training: StudyTraining | None
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        """For the terminal."""
        return self.training.folder if self.training else self.cells[0].adapter


def plan(study: Study) -> tuple[Unit, ...]:
    """The work in order: each training with the cells of its adapter, then the adapters that exist already.

    The base model is the same whatever adapter is loaded, so a task's `base` is run once, with its first adapter.
    """
    based: set[str] = set()
    units: list[Unit] = []
    for training in study.trainings:
        found = _cells(training.task, str(adapter_folder(study, training)), training, training.choices, based)
        units.append(Unit(training, found))
    for adapter in study.adapters:
        found = tuple(cell for task in study.tasks for cell in _cells(task, adapter.path, None, adapter.choices, based))
        if found:
            units.append(Unit(None, found))
    return tuple(units)


def _cells(
    task: StudyTask, adapter: str, training: StudyTraining | None, choices: Sequence[StudyChoice], based: set[str]
) -> tuple[Cell, ...]:
    cells = []
    for choice in choices:
        if choice.is_base:
            if task.name in based:
                continue
            based.add(task.name)
        metrics: Sequence[str | None] = task.metrics if choice.is_swept and task.metrics else [None]
        cells += [Cell(task, adapter, training, choice, metric) for metric in metrics]
    return tuple(cells)


def cell_folder(study: Study, cell: Cell) -> Path:
    """Where a cell is written: its name, and a digest of everything that changes its answers."""
    adapter: Any = cell.adapter
    if cell.training is not None:
        adapter = [dataclasses.asdict(cell.training.settings), dataclasses.asdict(study.asked(cell.task))]
    passing = {"device", *neutral(LoraDropArgs)}
    model_args = {key: value for key, value in study.model_args.items() if key not in passing}
    passing = neutral(EvaluationOptions)
    evaluation = {key: value for key, value in cell.task.evaluation.items() if key not in passing}
    settings = [model_args, cell.task.task, cell.task.metadata, evaluation, adapter, cell.model_args]
    return study.output / CELLS / f"{re.sub(r'[^A-Za-z0-9=+._-]+', '_', cell.name)}-{short(digest(*settings), 8)}"


def read_cell(study: Study, cell: Cell) -> dict[str, Any] | None:
    """What a finished cell wrote about itself, None where it is not finished.

    Raises:
        ArgumentError: the file is damaged.
    """
    file = cell_folder(study, cell) / DONE
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{file} cannot be read ({error}). Remove it; the cell is run again.") from error


@dataclass(frozen=True)
class StudyProgress:
    """What is done and what is left. Seconds are None until there is one of the kind to go by, bytes where the base
    model's configuration cannot be read, for the reason in `unknown`."""

    trainings: int
    trained: int
    cells: int
    evaluated: int
    training_seconds_left: float | None
    cell_seconds_left: float | None
    bytes_left: int | None
    unknown: str
    free_bytes: int

    def __str__(self) -> str:
        lines = [
            f"{self.trainings} trainings, {self.trained} done" + _time(self.training_seconds_left),
            f"{self.cells} cells, {self.evaluated} done" + _time(self.cell_seconds_left),
        ]
        if self.bytes_left is None:
            needed = f"what the trainings need is not known ({self.unknown})"
        else:
            needed = f"about {megabytes(self.bytes_left)} more for adapters and checkpoints"
        return "\n".join([*lines, f"disk: {needed}, {megabytes(self.free_bytes)} free"])


def bill(study: Study, *, train: bool = True) -> StudyProgress:
    """Count what is done, and reckon what is left: time by the mean of what is done, disk by `bytes_left`.

    Args:
        study: the study.
        train: whether what is missing will be trained.
    """
    trained = [one for one in study.trainings if is_trained(study, one)]
    records = [read_record(adapter_folder(study, one)) for one in trained]
    cells = [cell for _, group in plan(study) for cell in group]
    done = [entry for cell in cells if (entry := read_cell(study, cell)) is not None]
    unknown, left = "", None
    try:
        left = bytes_left(study) if train else 0
    except ArgumentError as error:
        unknown = str(error)
    return StudyProgress(
        trainings=len(study.trainings),
        trained=len(trained),
        cells=len(cells),
        evaluated=len(done),
        training_seconds_left=_left([one.seconds for one in records if one], len(study.trainings) - len(trained)),
        cell_seconds_left=_left([float(entry["seconds"]) for entry in done], len(cells) - len(done)),
        bytes_left=left,
        unknown=unknown,
        free_bytes=free_bytes(study),
    )


def _left(seconds: Sequence[float], missing: int) -> float | None:
    return sum(seconds) / len(seconds) * missing if seconds else None


def _time(seconds: float | None) -> str:
    return "" if not seconds else f", about {seconds / 60:,.0f} minutes more"
