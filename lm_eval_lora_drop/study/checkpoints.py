"""Sweeps every checkpoint of a training on validation documents, and keeps the best pair of checkpoint and variant.

    trainer = SFTTrainer(..., callbacks=[SweepCheckpoints(task, folder)])

or `lora-drop train ... --sweep-checkpoints`. It works in any trainer of Transformers that trains a PEFT LoRA: TRL,
LLaMA-Factory, axolotl (docs/howto/train.md has a line for each).
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import TrainerCallback

from lm_eval_lora_drop.backends.hf import LoraDropLM
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import write_atomically
from lm_eval_lora_drop.harness.documents import Binding
from lm_eval_lora_drop.record.events import Broadcast
from lm_eval_lora_drop.record.plain import plain
from lm_eval_lora_drop.show.listeners import default_listeners
from lm_eval_lora_drop.sweep.search import Search
from lm_eval_lora_drop.text import logger
from lm_eval_lora_drop.train.examples import load_binding
from lm_eval_lora_drop.train.settings import TaskSettings

log = logger(__name__)
CURVE = "checkpoints.json"
BEST = "best"


@dataclass(frozen=True)
class CheckpointResult:
    """One checkpoint: its step and epoch, the variant chosen on the validation documents, its score and that of the
    full adapter there, and the metric."""

    step: int
    epoch: float
    variant: str
    boundary: int | None
    score: float
    full_score: float | None
    metric: str
    higher_is_better: bool
    documents: int


class SweepCheckpoints(TrainerCallback):
    """After each checkpoint: a sweep of `boundary=auto` with `model_args` (`sweep_limit`, `sweep_metric`, ...) on the
    validation documents of `task`; the curve goes to `folder`/checkpoints.json, the best checkpoint's adapter to
    `folder`/best. The training itself is left as it was: its random numbers, its mode, its gradients.

    The best of many checkpoints on one set of documents looks better there than it is: test it on others.

    Raises:
        ArgumentError: when training begins, for a task without validation documents, a model without LoRA, or several
            processes.
    """

    def __init__(self, task: TaskSettings, folder: Path, model_args: Mapping[str, Any] | None = None) -> None:
        self._task = task
        self._folder = folder
        self._model_args = dict(model_args or {})
        self._binding: Binding | None = None
        self.points: dict[int, CheckpointResult] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        """Check what can be wrong, and read the curve of a training that goes on."""
        if args.world_size > 1:
            raise ArgumentError(
                "Sweeping checkpoints works in a training of one process. Train without it, and sweep the checkpoints "
                "afterwards (--keep-checkpoints, then lm_eval with boundary=auto for each)."
            )
        if not isinstance(given["model"], PeftModel):
            raise ArgumentError(f"Only LoRA checkpoints can be swept, got a {type(given['model']).__name__}.")
        self._binding = load_binding(self._task, given["processing_class"])
        file = self._folder / CURVE
        if file.is_file():
            known = (CheckpointResult(**entry) for entry in json.loads(file.read_text(encoding="utf-8")))
            # What was swept after the checkpoint from which the training goes on is swept again.
            self.points = {point.step: point for point in known if point.step <= state.global_step}

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        """Sweep the model as it has just been saved."""
        if state.global_step in self.points:
            return
        point = self._sweep(given["model"], given["processing_class"], state)
        self.points[point.step] = point
        self._folder.mkdir(parents=True, exist_ok=True)
        if self.best() == point:
            self._keep(Path(args.output_dir) / f"checkpoint-{point.step}")
        curve = [plain(asdict(one)) for one in self.points.values()]
        write_atomically(self._folder / CURVE, json.dumps(curve, indent=1) + "\n")
        log.info("step %d: %s %.4f at %s", point.step, point.metric, point.score, point.variant)

    def best(self) -> CheckpointResult | None:
        """The point with the best score, of equal ones the earliest."""
        if not self.points:
            return None
        points = sorted(self.points.values(), key=lambda point: point.step)
        return max(points, key=lambda point: point.score if point.higher_is_better else -point.score)

    def _sweep(self, model: PeftModel, tokenizer: Any, state: Any) -> CheckpointResult:
        assert self._binding is not None
        with _undisturbed(model):
            lm = LoraDropLM(
                pretrained=model,
                **{"tokenizer": tokenizer, "batch_size": 8, **self._model_args, "boundary": "auto"},
            )
            search = Search(
                backend=lm,
                args=lm.args,
                folder=self._folder / "sweeps",
                listeners=Broadcast(default_listeners(0)),
                recall=lambda _: None,
            )
            (self._folder / "sweeps").mkdir(parents=True, exist_ok=True)
            record = search.decide(self._binding)
        if record.sweep is None or record.metric is None:
            raise ArgumentError(
                f"{self._binding.name} has no validation documents, so its checkpoints cannot be swept. Name a task "
                "with a validation or training split besides the evaluated one."
            )
        chosen = record.sweep.candidate(record.sweep.chosen)
        assert chosen is not None
        full = record.sweep.candidates[0]
        return CheckpointResult(
            step=int(state.global_step),
            epoch=float(state.epoch),
            variant=record.variant,
            boundary=record.boundary,
            score=float("nan") if chosen.score is None else chosen.score,
            full_score=full.score,
            metric=str(record.metric),
            higher_is_better=record.metric.higher_is_better,
            documents=chosen.documents,
        )

    def _keep(self, checkpoint: Path) -> None:
        target, scratch, before = (self._folder / f"{BEST}{suffix}" for suffix in ("", ".new", ".before"))
        for rest in (scratch, before):
            shutil.rmtree(rest, ignore_errors=True)
        scratch.mkdir()
        for file in checkpoint.glob("adapter_*"):
            shutil.copy2(file, scratch / file.name)
        best = self.best()
        assert best is not None
        (scratch / "best.json").write_text(json.dumps(plain(asdict(best)), indent=1) + "\n", encoding="utf-8")
        # Renamed, not emptied: a kill leaves a whole folder of this name or none, never half of one.
        if target.exists():
            target.replace(before)
        scratch.replace(target)
        shutil.rmtree(before, ignore_errors=True)


@contextmanager
def _undisturbed(model: PeftModel) -> Iterator[None]:
    """Evaluation within a training: mode, gradients and every generator of random numbers are given back."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    cache = model.config.use_cache
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            model.eval()
            model.config.use_cache = True
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        model.config.use_cache = cache
        random.setstate(python)
        np.random.set_state(numpy)
