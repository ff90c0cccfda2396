"""The trainings of a study, one after another; each is a `lora-drop train`, and goes on where it was."""

from __future__ import annotations

import logging
from pathlib import Path

from lm_eval_lora_drop.errors import LoraDropError
from lm_eval_lora_drop.study.config import Study, StudyTraining
from lm_eval_lora_drop.train.record import read_record

log = logging.getLogger(__name__)
ADAPTERS = "adapters"


def adapter_folder(study: Study, training: StudyTraining) -> Path:
    """Where a training's adapter lies."""
    return study.output / ADAPTERS / training.folder


def is_trained(study: Study, training: StudyTraining) -> bool:
    """Whether the adapter is complete: its record is written last."""
    return read_record(adapter_folder(study, training)) is not None


def run_training(study: Study, training: StudyTraining) -> None:
    """Train one adapter, or find that it is there.

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


def run_trainings(study: Study) -> list[str]:
    """Train what is missing; a sentence for each adapter that could not be trained."""
    failed = []
    for number, training in enumerate(study.trainings, start=1):
        log.info("%d/%d training %s", number, len(study.trainings), training.folder)
        try:
            run_training(study, training)
        except LoraDropError as error:
            failed.append(f"{training.folder}: {error}")
            log.error("%s: %s", training.folder, error)
    return failed
