"""What a study is to run: its cells in order, where each is written, what is done, and what is left to pay."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.fingerprint import digest, short
from lm_eval_lora_drop.study.config import Choice, Study, StudyTask, StudyTraining
from lm_eval_lora_drop.study.trainings import adapter_folder, is_trained
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
    choice: Choice
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


def plan(study: Study) -> tuple[tuple[StudyTraining | None, tuple[Cell, ...]], ...]:
    """The work in order: each training with the cells of its adapter, then the adapters that exist already.

    The base model is the same whatever adapter is loaded, so a task's `base` is run once, with its first adapter.
    """
    based: set[str] = set()
    groups: list[tuple[StudyTraining | None, tuple[Cell, ...]]] = []
    for training in study.trainings:
        found = _cells(training.task, str(adapter_folder(study, training)), training, training.choices, based)
        groups.append((training, found))
    for adapter in study.adapters:
        found = tuple(cell for task in study.tasks for cell in _cells(task, adapter.path, None, adapter.choices, based))
        groups.append((None, found))
    return tuple(groups)


def _cells(
    task: StudyTask, adapter: str, training: StudyTraining | None, choices: Sequence[Choice], based: set[str]
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
    model_args = {key: value for key, value in study.model_args.items() if key not in ("device", "sweep_dir")}
    evaluation = {key: value for key, value in cell.task.evaluation.items() if key not in ("device", "batch_size")}
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
class Bill:
    """What is done and what is left. Seconds and bytes left are None until there is one of the kind to go by."""

    trainings: int
    trained: int
    cells: int
    evaluated: int
    training_seconds_left: float | None
    cell_seconds_left: float | None
    bytes_left: int | None
    free_bytes: int

    def __str__(self) -> str:
        lines = [
            f"{self.trainings} trainings, {self.trained} done" + _time(self.training_seconds_left),
            f"{self.cells} cells, {self.evaluated} done" + _time(self.cell_seconds_left),
        ]
        left = "" if self.bytes_left is None else f"about {self.bytes_left / 1e6:,.0f} MB more to write, "
        return "\n".join([*lines, f"{left}{self.free_bytes / 1e6:,.0f} MB free"])


def bill(study: Study) -> Bill:
    """Count what is done, and reckon what is left by the mean of what is done."""
    trained = [one for one in study.trainings if is_trained(study, one)]
    folders = [adapter_folder(study, one) for one in trained]
    seconds = [record.seconds for folder in folders if (record := read_record(folder)) is not None]
    sizes = [sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) for folder in folders]
    cells = [cell for _, group in plan(study) for cell in group]
    done = [entry for cell in cells if (entry := read_cell(study, cell)) is not None]
    missing = len(study.trainings) - len(trained)
    existing = next(path for path in (study.output.absolute(), *study.output.absolute().parents) if path.is_dir())
    return Bill(
        trainings=len(study.trainings),
        trained=len(trained),
        cells=len(cells),
        evaluated=len(done),
        training_seconds_left=_left(seconds, missing),
        cell_seconds_left=_left([float(entry["seconds"]) for entry in done], len(cells) - len(done)),
        bytes_left=None if not sizes else round(sum(sizes) / len(sizes) * missing),
        free_bytes=shutil.disk_usage(existing).free,
    )


def _left(seconds: Sequence[float], missing: int) -> float | None:
    return sum(seconds) / len(seconds) * missing if seconds else None


def _time(seconds: float | None) -> str:
    return "" if not seconds else f", about {seconds / 60:,.0f} minutes more"
