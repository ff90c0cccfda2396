"""What a study is to run: its cells in order, where each is written, and which are done."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import AutoConfig

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.options import EvaluationOptions, LoraDropArgs, neutral
from lm_eval_lora_drop.record.fingerprint import digest, short
from lm_eval_lora_drop.study.config import Study, StudyChoice, StudyTask, StudyTraining
from lm_eval_lora_drop.study.trainings import adapter_folder
from lm_eval_lora_drop.variant import VariantSpec, format_integers

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
        adapter = str(adapter_folder(study, training))
        found = _cells(training.task, adapter, training, _with_controls(study, training.choices, training), based)
        units.append(Unit(training, found))
    for existing in study.adapters:
        choices = _with_controls(study, existing.choices, None)
        found = tuple(cell for task in study.tasks for cell in _cells(task, existing.path, None, choices, based))
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


def num_layers(study: Study) -> int:
    """The number of decoder layers, by the base model's configuration.

    Raises:
        ArgumentError: it cannot be read.
    """
    remote = bool(study.model_args.get("trust_remote_code", False))
    return _num_layers(str(study.model_args["pretrained"]), study.model_args.get("revision"), remote)


@lru_cache(maxsize=16)
def _num_layers(base: str, revision: str | None, remote: bool) -> int:
    try:
        config = AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=remote)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"pretrained={base} cannot be read ({str(error).splitlines()[0]}). Check it.") from error
    return int(config.get_text_config(decoder=True).num_hidden_layers)


def _with_controls(
    study: Study, choices: Sequence[StudyChoice], training: StudyTraining | None
) -> Sequence[StudyChoice]:
    """The choices, and for each that keeps the bottom K of L layers: the upper K, and `controls` random sets of K.

    Each training seed has random sets of its own, so that an interval over seeds is one over sets too. None of them is
    the bottom K, the upper K or one before.
    """
    fixed = [one for one in choices if one.spec.kind in ("given", "default")] if study.controls else []
    return list(dict.fromkeys([*choices, *(control for one in fixed for control in _controls(study, one, training))]))


def _controls(study: Study, choice: StudyChoice, training: StudyTraining | None) -> Iterator[StudyChoice]:
    layers = num_layers(study)
    kept = choice.spec.resolve(layers)
    size = kept.boundary if kept is not None else None
    if not size or size == layers:
        return
    upper = tuple(range(layers - size, layers))
    seen = {tuple(range(size)), upper}
    yield StudyChoice(VariantSpec("layers", layers=format_integers(upper)), control=("upper", size))
    rng = np.random.default_rng([training.settings.seed if training else 0, size])
    # Few sets of a small model may exist: as many as are found.
    for _ in range(100 * study.controls):
        drawn = tuple(sorted(rng.choice(layers, size, replace=False).tolist()))
        if drawn not in seen:
            seen.add(drawn)
            yield StudyChoice(VariantSpec("layers", layers=format_integers(drawn)), control=("random", size))
        if len(seen) == 2 + study.controls:
            return


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
