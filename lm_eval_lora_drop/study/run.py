"""Runs a study: each training, then the cells of its adapter, each an ordinary run of `lm_eval` (results and samples).

What is done is passed over, so an interrupted study goes on where it was; `compare`, `leaderboard` and `report` read
the cells as they read any run.
"""

from __future__ import annotations

import gc
import inspect
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM

from lm_eval_lora_drop.adapter import files as adapter_files
from lm_eval_lora_drop.errors import ArgumentError, LoraDropError
from lm_eval_lora_drop.files import write_atomically
from lm_eval_lora_drop.models.args import LoraDropArgs
from lm_eval_lora_drop.models.hf import LoraDropLM
from lm_eval_lora_drop.record.schema import from_config
from lm_eval_lora_drop.study.config import Study
from lm_eval_lora_drop.study.plan import DONE, Cell, cell_folder, plan, read_cell
from lm_eval_lora_drop.study.trainings import is_trained, run_training
from lm_eval_lora_drop.train.documents import check_trainable
from lm_eval_lora_drop.train.examples import load_binding, task_manager
from lm_eval_lora_drop.train.lora import load_tokenizer

log = logging.getLogger(__name__)
_LOCK = ".study.lock"
_HFLM = inspect.signature(HFLM.__init__).parameters


def run_study(study: Study, *, train: bool = True, evaluate: bool = True) -> list[str]:
    """Run what is missing; returns a sentence for each training or cell that could not be run.

    Raises:
        ArgumentError: a task, the base model or the output folder cannot be used, said before anything is trained; or
            another command is working in the folder.
    """
    try:
        study.output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(study.output / _LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise ArgumentError(f"{study.output} is in use by another study. Wait for it, or give --output.") from None
    except OSError as error:
        raise ArgumentError(f"output must be a folder that can be written, got {study.output} ({error}).") from error
    with lock:
        check_study(study, train=train)
        return _Runner(study).run(train=train, evaluate=evaluate)


def check_study(study: Study, *, train: bool) -> None:
    """Load every task and the tokenizer, and find the adapters that are to exist.

    Raises:
        ArgumentError: something is missing, or a task cannot be trained on.
    """
    remote = bool(study.model_args.get("trust_remote_code", False))
    revision = study.model_args.get("revision")
    tokenizer = load_tokenizer(str(study.model_args["pretrained"]), revision, trust_remote_code=remote)
    for task in study.tasks:
        binding = load_binding(study.asked(task), tokenizer)
        if train and any(one.task is task and not is_trained(study, one) for one in study.trainings):
            check_trainable(binding)
    for adapter in study.adapters:
        adapter_files.open_adapter(adapter.path)


class _Runner:
    """Keeps the model and the index of tasks from cell to cell."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._model: LoraDropLM | None = None
        self._loaded: str | None = None
        self._failed: list[str] = []

    def run(self, *, train: bool, evaluate: bool) -> list[str]:
        for training, cells in plan(self._study):
            if training is not None and not self._try(training.folder, lambda one=training: self._train(one, train)):
                continue
            for cell in cells if evaluate else ():
                if read_cell(self._study, cell) is None:
                    log.info("cell %s", cell.name)
                    self._try(cell.name, lambda one=cell: self._evaluate(one))
        return self._failed

    def _try(self, name: str, work: Any) -> bool:
        try:
            work()
        except LoraDropError as error:
            self._failed.append(f"{name}: {error}")
            log.error("%s: %s", name, error)
            return False
        return True

    def _train(self, training: Any, allowed: bool) -> None:
        if is_trained(self._study, training):
            return
        if not allowed:
            raise ArgumentError("not trained yet. Run the study without --only evaluate.")
        log.info("training %s", training.folder)
        self._model = self._loaded = None  # the trainer needs the memory
        gc.collect()
        run_training(self._study, training)

    def _evaluate(self, cell: Cell) -> None:
        study = self._study
        start = time.monotonic()
        model = self._load(cell)
        args, _ = LoraDropArgs.take({**study.model_args, **cell.model_args}, known=_HFLM)
        model.use(args)
        manager = task_manager(study.include_path, {**study.model_args, **cell.task.metadata})
        folder = cell_folder(study, cell)
        arguments = {**study.model_args, "peft": cell.adapter, **cell.model_args}
        tracker = EvaluationTracker(output_path=str(folder))
        results: Any = simple_evaluate(
            model=model,
            model_args=arguments,
            tasks=[cell.task.task],
            task_manager=manager,
            evaluation_tracker=tracker,
            log_samples=True,
            **cell.task.evaluation,
        )
        if results is None:  # another rank writes
            return
        # The harness takes its name for a model that it did not load from the model's configuration.
        results["config"]["model"] = "hf-lora-drop"
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        for task, logged in samples.items():
            tracker.save_results_samples(task_name=task, samples=logged)
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
    # The harness logs a file it could not write and goes on; such a cell is not done.
    if not any(folder.rglob("results_*.json")):
        raise LoraDropError(f"{cell.name}: lm_eval could not write its results to {folder}.")
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
