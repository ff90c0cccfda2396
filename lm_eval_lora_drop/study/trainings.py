"""The trainings of a study, and the disk that they take; each is a `lora-drop train`, and resumes."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError, LoraDropError
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


def bytes_left(study: Study, at_once: int = 1) -> int:
    """Bytes that the missing trainings will need at most, `at_once` of them going on at a time: every adapter, and
    beside them the checkpoints of those that go on. What is small (cells, records) is not counted.

    Raises:
        ArgumentError: the base model's configuration cannot be read, a training cannot be put on it, or one was
            trained otherwise.
    """
    missing = [one for one in study.trainings if not is_trained(study, one)]
    if not missing:
        return 0
    from lm_eval_lora_drop.train.lora import load_tokenizer
    from lm_eval_lora_drop.train.size import training_size

    base, revision = str(study.model_args["pretrained"]), study.model_args.get("revision")
    remote = bool(study.model_args.get("trust_remote_code", False))
    tokenizer = load_tokenizer(base, revision, trust_remote_code=remote)
    adapters, checkpoints = 0, []
    for one in missing:
        try:
            size = training_size(base, revision, one.settings, tokenizer, trust_remote_code=remote)
        except LoraDropError as error:
            raise ArgumentError(f"{study.path}: trainings.{one.name}: {error}") from error
        # What an interrupted training has written is paid already.
        there = sum(file.stat().st_size for file in adapter_folder(study, one).rglob("*") if file.is_file())
        adapters += size.adapter
        checkpoints.append(max(0, size.checkpoints - there))
    return adapters + sum(sorted(checkpoints)[-at_once:])


def free_bytes(study: Study) -> int:
    """What is free on the disk of the study's folder, or of the folder that it will stand in."""
    folder = study.output.absolute()
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.is_dir())).free


def check_room(study: Study, at_once: int = 1, free: int | None = None) -> None:
    """Refuse trainings whose adapters and checkpoints cannot all be written; `free` bytes default to the disk's.

    Raises:
        ArgumentError: they cannot, or as `bytes_left`.
    """
    missing = sum(not is_trained(study, one) for one in study.trainings)
    at_once = min(at_once, missing)
    needed, free = bytes_left(study, at_once), free_bytes(study) if free is None else free
    if needed > free:
        raise ArgumentError(
            f"output must be on a disk with room for the missing adapters and the checkpoints of {at_once} training"
            f"{'s' * (at_once > 1)}, about {megabytes(needed)}; {study.output} has {megabytes(free)} free. Free some, "
            "give --output on another disk, or train less (fewer seeds, a lower rank, checkpoints: 1)."
        )


def megabytes(number: int) -> str:
    """`1,234 MB`; with one digit after the point below 10."""
    return f"{number / 1e6:,.{1 if 0 < number < 1e7 else 0}f} MB"
