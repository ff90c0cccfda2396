"""Runs a study: each training, then the cells of its adapter, each an ordinary run of `lm_eval` (results and samples).

What is done is passed over, so an interrupted study resumes; `compare`, `leaderboard` and `report` read the cells as
they read any run. Several processes may run one study, on one machine or on many that share its folder: each takes the
next unit (a training with its cells) that no other has locked. A killed process releases its lock.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lm_eval_lora_drop.adapter import files as adapter_files
from lm_eval_lora_drop.backends.hf import HF_ARGUMENTS, LoraDropLM
from lm_eval_lora_drop.errors import ArgumentError, LoraDropError
from lm_eval_lora_drop.files import write_atomically
from lm_eval_lora_drop.harness.evaluation import evaluate
from lm_eval_lora_drop.harness.task_index import task_manager
from lm_eval_lora_drop.options import parse_model_args
from lm_eval_lora_drop.record.answers import KeptAnswers
from lm_eval_lora_drop.record.fingerprint import digest, short
from lm_eval_lora_drop.record.schema import from_config
from lm_eval_lora_drop.study.config import Study, StudyTraining
from lm_eval_lora_drop.study.plan import DONE, Cell, Unit, cell_folder, plan, read_cell
from lm_eval_lora_drop.study.trainings import adapter_folder, is_trained, run_training
from lm_eval_lora_drop.text import logger
from lm_eval_lora_drop.train.record import remove_training_files

log = logger(__name__)
_LOCKS = ".locks"
_ANSWERS = "answers"


def run_study(study: Study, *, train: bool = True, evaluate: bool = True) -> list[str]:
    """Run what is missing and no other process is at; returns a sentence for each training or cell that failed.

    `study.check.check_study` finds beforehand what cannot be run.

    Args:
        study: the study.
        train: train the adapters that are missing.
        evaluate: evaluate the cells that are missing.

    Raises:
        ArgumentError: the output folder cannot be written.
    """
    locks = study.output / _LOCKS
    try:
        locks.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"output must be a folder that can be written, got {study.output} ({error}).") from error
    runner = UnitRunner(study, train=train, evaluate=evaluate)
    failed: list[str] = []
    waiting = plan(study)
    while waiting:
        elsewhere = []
        for unit in waiting:
            try:
                with FileLock(locks / f"{short(digest(unit.name), 16)}.lock", timeout=0):
                    failed += runner.run(unit)
            except Timeout:
                elsewhere.append(unit)
        if len(elsewhere) == len(waiting):
            names = ", ".join(unit.name for unit in elsewhere)
            log.warning("left to other processes, which are at it: %s. The last one writes the whole report.", names)
            break
        # One of them may have ended, or been killed, in the meantime.
        waiting = tuple(elsewhere)
    return failed


class UnitRunner:
    """Does the work of units, and keeps the model from one to the next."""

    def __init__(self, study: Study, *, train: bool, evaluate: bool) -> None:
        self._study = study
        self._train_missing = train
        self._evaluate_missing = evaluate
        self._model: LoraDropLM | None = None
        self._loaded: str | None = None

    def run(self, unit: Unit) -> list[str]:
        """Train the unit's adapter and evaluate its cells where that is missing; returns a sentence for each that
        could not be done."""
        training, missing = self._missing(unit)
        failed: list[str] = []
        if training is not None and not self._try(failed, training.folder, partial(self._train, training)):
            return failed
        for cell in missing:
            log.info("cell %s", cell.name)
            self._try(failed, cell.name, partial(self._evaluate, cell))
        return failed

    def _missing(self, unit: Unit) -> tuple[StudyTraining | None, list[Cell]]:
        training, cells = unit
        if training is not None and is_trained(self._study, training):
            remove_training_files(adapter_folder(self._study, training))
            training = None
        wanted = cells if self._evaluate_missing else ()
        return training, [cell for cell in wanted if read_cell(self._study, cell) is None]

    @staticmethod
    def _try(failed: list[str], name: str, work: Callable[[], None]) -> bool:
        try:
            work()
        except LoraDropError as error:
            failed.append(f"{name}: {error}")
            log.error("%s: %s", name, error)
            return False
        return True

    def _train(self, training: StudyTraining) -> None:
        if not self._train_missing:
            raise ArgumentError("not trained yet. Run the study without --only evaluate.")
        log.info("training %s", training.folder)
        self._model = self._loaded = None  # the trainer needs the memory
        gc.collect()
        run_training(self._study, training)

    def _evaluate(self, cell: Cell) -> None:
        study = self._study
        start = time.monotonic()
        model = self._load(cell)
        # The full adapter has a cell of its own.
        args, _ = parse_model_args({"evaluate": "chosen", **study.model_args, **cell.model_args}, known=HF_ARGUMENTS)
        model.use(args)
        # Processes that answer together must all ask or all know.
        model.kept_answers = KeptAnswers(study.output / _ANSWERS) if model.world_size == 1 else None
        manager = task_manager([cell.task.task], study.include_path, {**study.model_args, **cell.task.metadata})
        folder = cell_folder(study, cell)
        if folder.exists():  # results of a run that was killed before it was done: another run beside this one
            shutil.rmtree(folder)
        arguments = {**study.model_args, "peft": cell.adapter, **cell.model_args}
        found = evaluate(
            model,
            folder,
            name="hf-lora-drop",
            model_args=arguments,
            tasks=[cell.task.task],
            task_manager=manager,
            **cell.task.evaluation,
        )
        if found is None:  # another rank writes
            return
        results, file = found
        if file is None:
            raise LoraDropError(f"{cell.name}: lm_eval could not write its results to {folder}.")
        _mark_done(folder, cell, arguments, results, time.monotonic() - start)

    def _load(self, cell: Cell) -> LoraDropLM:
        if self._model is None or (self._loaded != cell.adapter and not _can_swap(self._loaded, cell.adapter)):
            self._model = self._loaded = None  # frees the old one before the new one is loaded
            given = {key: cell.task.evaluation[key] for key in ("batch_size", "device") if key in cell.task.evaluation}
            # The lm_eval command's own default: the first GPU, and the CPU where there is none.
            load = {"device": "cuda:0", **self._study.model_args, **given}
            self._model = LoraDropLM(peft=cell.adapter, **load, **cell.model_args)
        elif self._loaded != cell.adapter:
            self._model.swap_adapter(cell.adapter)
        self._loaded = cell.adapter
        return self._model


def _can_swap(before: str | None, after: str) -> bool:
    """Whether taking one adapter out of the base model leaves that as it was loaded: LoRA alone does."""
    return not any(adapter_files.trained_besides_lora(adapter_files.open_adapter(str(one))) for one in (before, after))


def _mark_done(
    folder: Path, cell: Cell, arguments: Mapping[str, Any], results: Mapping[str, Any], seconds: float
) -> None:
    task = cell.task.task
    run = from_config(results["config"], folder)
    assert run is not None
    record = run.tasks[task]
    scores = {key: value for key, value in results["results"][task].items() if isinstance(value, float)}
    done = {
        "cell": cell.name,
        "task": cell.task.name,
        "training": cell.training.name if cell.training else None,
        "seed": cell.training.settings.seed if cell.training else None,
        "choice": str(cell.choice),
        "variant": record.variant,
        "boundary": record.boundary,
        "kept_parameters": record.kept_parameters,
        "documents": results["n-samples"][task]["effective"],
        "scores": scores,
        "seconds": round(seconds, 1),
        "model_args": dict(arguments),
    }
    write_atomically(folder / DONE, json.dumps(done, indent=2, default=str) + "\n")
