"""The trainings of a study; each is a `lora-drop train`, and resumes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.plain import plain
from lm_eval_lora_drop.study.config import Study, StudyTraining
from lm_eval_lora_drop.train.record import read_record

ADAPTERS = "adapters"


def adapter_folder(study: Study, training: StudyTraining) -> Path:
    """Where a training's adapter lies."""
    return study.output / ADAPTERS / training.folder


def is_trained(study: Study, training: StudyTraining) -> bool:
    """Whether the adapter is complete and was trained as the study says; its record, which is written last, tells.

    Raises:
        ArgumentError: it was trained otherwise.
    """
    folder = adapter_folder(study, training)
    record = read_record(folder)
    if record is None:
        return False
    settings = {**dataclasses.asdict(training.settings), "lora_alpha": training.settings.alpha}
    wanted: dict[str, Any] = {**plain(settings), **plain(dataclasses.asdict(study.asked(training.task)))}
    found = {**record.settings, **record.task}
    differing = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if differing:
        was = ", ".join(f"{key}={found.get(key)}" for key in differing)
        says = ", ".join(f"{key}={wanted.get(key)}" for key in differing)
        raise ArgumentError(
            f"{folder} was trained with {was}, and {study.path} says {says}. Give the training another name, or remove "
            "the folder."
        )
    return True


def run_training(study: Study, training: StudyTraining) -> None:
    """Train one adapter, or go on with it.

    Raises:
        LoraDropError: it cannot be trained as the study says.
    """
    from lm_eval_lora_drop.train.run import Training, train

    device = str(study.model_args.get("device", training.task.evaluation.get("device", "")))
    train(
        Training(
            base=str(study.model_args["pretrained"]),
            base_name=study.base_name,
            revision=study.model_args.get("revision"),
            trust_remote_code=bool(study.model_args.get("trust_remote_code", False)),
            output=adapter_folder(study, training),
            task=study.asked(training.task),
            settings=training.settings,
            device="cpu" if device == "cpu" else None,
        )
    )
