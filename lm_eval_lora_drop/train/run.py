"""One training, from a task's name to an adapter on disk, on Transformers' `Trainer` and PEFT; it resumes."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from lm_eval_lora_drop import __version__
from lm_eval_lora_drop.adapter.files import base_fingerprint
from lm_eval_lora_drop.adapter.places import find_decoder_layers, last_states
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import write_atomically
from lm_eval_lora_drop.record.fingerprint import digest, library_versions
from lm_eval_lora_drop.record.plain import plain
from lm_eval_lora_drop.statistics.alignment import by_importance, cka_pretrained
from lm_eval_lora_drop.text import logger
from lm_eval_lora_drop.train import lora
from lm_eval_lora_drop.train.card import write_card
from lm_eval_lora_drop.train.documents import TrainingDocuments, choose_documents, validation_documents
from lm_eval_lora_drop.train.examples import Example, example_builder, load_binding
from lm_eval_lora_drop.train.record import (
    CHECKPOINTS,
    SCHEMA,
    STARTED,
    DataRecord,
    StepRecord,
    TrainingRecord,
    ValidationLoss,
    read_record,
    remove_training_files,
    write_record,
)
from lm_eval_lora_drop.train.settings import TaskSettings, TrainingSettings
from lm_eval_lora_drop.train.tokens import IGNORED, TokenizedExample, answer_end, encode
from lm_eval_lora_drop.train.trainer import AnswerTrainer, TrainingProgressBar, collate

log = logger(__name__)
_LOCK = ".lock"
CKA_DOCUMENTS = 100
"""On whose prompts `layers=cka:SHARE` compares hidden states: as many as a sweep reads by default."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training to run. `base` is a folder or a Hub id, `base_name` what the adapter says it was trained on;
    `callbacks` are further ones for the trainer."""

    base: str
    output: Path
    task: TaskSettings
    settings: TrainingSettings
    revision: str | None = None
    base_name: str | None = None
    trust_remote_code: bool = False
    keep_checkpoints: bool = False
    device: str | None = None
    callbacks: tuple[TrainerCallback, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """Everything of a training that can be known, and be wrong, before a weight is loaded."""

    tokenizer: Any
    documents: TrainingDocuments
    examples: list[Example]
    encoded: list[TokenizedExample]
    validation: list[TokenizedExample]
    task_version: str

    @property
    def sha256(self) -> str:
        """Over prompts and answers, in order."""
        return digest([[one.prompt, one.answer] for one in self.examples])


def prepare(training: Training) -> Prepared:
    """Load the task, draw its documents, encode them.

    Raises:
        ArgumentError: whatever is wrong with model, task or data.
    """
    settings, asked = training.settings, training.task
    tokenizer = lora.load_tokenizer(training.base, training.revision, trust_remote_code=training.trust_remote_code)
    binding = load_binding(asked, tokenizer)
    end = answer_end(tokenizer, chat=asked.apply_chat_template)
    examples: list[Example] = []
    encoded: list[TokenizedExample] = []
    limit = settings.validation_limit
    hold_out = max(settings.hold_out, limit)

    def fits(doc_id: int, doc: Any) -> bool:
        example = build(doc_id, doc)
        one = encode(tokenizer, example, end, settings.max_length)
        if one is None or (one.cut and settings.long == "skip"):
            return False
        examples.append(example)
        encoded.append(one)
        return True

    with example_builder(binding, settings.data_seed) as build:
        documents = choose_documents(
            binding, limit=settings.limit, seed=settings.data_seed, hold_out=hold_out, fits=fits
        )
        swept = [build(doc_id, doc) for doc_id, doc in validation_documents(binding, limit)]
    fitting = [
        one for one in (encode(tokenizer, one, end, settings.max_length) for one in swept) if one and not one.cut
    ]
    if len(fitting) < limit:
        log.warning(
            "%s: the validation loss is measured on %d of %d documents: the task has no more that fit max_length",
            binding.name,
            len(fitting),
            limit,
        )
    version = str((binding.task.config.metadata or {}).get("version", ""))
    return Prepared(tokenizer, documents, examples, encoded, fitting, version)


def train(training: Training) -> TrainingRecord:
    """Train, or go on with a training that was interrupted, or find that it is done; returns its record.

    The output folder gets the adapter (in float32), `training.json` and a model card, the record last: where it
    stands, the adapter is complete. Under `accelerate launch` all processes call this, and the first one writes.

    Raises:
        ArgumentError: the input is wrong, or the folder is in use or holds another training.
    """
    state = PartialState(cpu=training.device == "cpu")
    prepared = prepare(training)
    folder = training.output
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"output must be a folder that can be written, got {folder} ({error.strerror}).") from error
    if not state.is_main_process:
        return _train(training, prepared, state)
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        with lock:
            record = _train(training, prepared, state)
            (folder / _LOCK).unlink(missing_ok=True)
            return record
    except Timeout:
        raise ArgumentError(f"{folder} is in use by another training. Wait for it, or choose another output.") from None


def _train(training: Training, prepared: Prepared, state: PartialState) -> TrainingRecord:
    folder, settings = training.output, training.settings
    identity = _identity(training, prepared)
    known = read_record(folder)
    if known is not None:
        if known.digest != identity:
            raise ArgumentError(f"{folder} holds an adapter of another training. Choose another output.")
        if state.is_main_process:
            remove_training_files(folder, keep_checkpoints=training.keep_checkpoints)
        log.info("%s: already trained", folder)
        return known
    resumed = _check_started(folder, identity, state)
    device = torch.device(training.device or state.device)
    dtype = lora.precision(settings, device)
    set_seed(settings.seed)
    # On a CPU the weights stay in float32, and products are taken in bfloat16 (autocast).
    loaded = torch.float32 if device.type == "cpu" else dtype
    model = lora.load_base(training.base, training.revision, loaded, trust_remote_code=training.trust_remote_code)
    name = training.base_name or training.base
    chosen = _by_cka(model, settings, prepared, device)
    peft = lora.add_lora(model, chosen, name, settings.seed)
    trainer = _trainer(training, prepared, peft, dtype, state)
    checkpoint = last_checkpoint(folder / CHECKPOINTS)
    if checkpoint is not None:
        log.info("%s: resuming from %s", folder, checkpoint.name)
    before = _seconds_before(checkpoint)
    start = time.monotonic()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if prepared.validation:
        trainer.evaluate()
    record = _record(
        training, prepared, identity, trainer,
        num_layers=len(find_decoder_layers(model)),
        trained_layers=chosen.describe_layers(len(find_decoder_layers(model))),
        dtype=dtype,
        seconds=before + time.monotonic() - start,
        resumed=resumed,
    )  # fmt: skip
    if state.is_main_process:
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder)
        write_card(record, folder)
        write_record(record, folder)
        remove_training_files(folder, keep_checkpoints=training.keep_checkpoints)
    state.wait_for_everyone()
    return record


def _by_cka(model: Any, settings: TrainingSettings, prepared: Prepared, device: torch.device) -> TrainingSettings:
    """The settings with the layers that `layers=cka:SHARE` stands for, found on the prompts of the first documents."""
    if settings.cka_share is None:
        return settings
    prompts = [one.input_ids[: one.labels.count(IGNORED)] for one in prepared.encoded[:CKA_DOCUMENTS]]
    scores = cka_pretrained(last_states(model.to(device), [one for one in prompts if one]))
    model.to("cpu")  # the LoRA is drawn there, whatever the device
    # One process's order: another device may round another way.
    found = settings.resolved(broadcast_object_list([by_importance(scores)])[0])
    log.info("layers=%s trains layers %s", settings.layers, found.layers)
    return found


def _identity(training: Training, prepared: Prepared) -> str:
    return digest(
        dataclasses.asdict(training.settings),
        dataclasses.asdict(training.task),
        base_fingerprint(training.base, training.revision),
        prepared.sha256,
        [list(one.input_ids) for one in prepared.encoded],
    )


def _check_started(folder: Path, identity: str, state: PartialState) -> int:
    """How often this training was begun before; its checkpoints belong to these settings, or it is refused."""
    file = folder / STARTED
    started: dict[str, Any] = {"digest": identity, "times": 0}
    if file.is_file():
        try:
            started = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            started = {"digest": identity, "times": 0}
        if started["digest"] != identity:
            raise ArgumentError(
                f"{folder} holds an unfinished training with other settings, data or base model. Finish it with those, "
                "remove the folder, or choose another output."
            )
    elif (folder / CHECKPOINTS).is_dir():
        raise ArgumentError(f"{folder / CHECKPOINTS} exists, but belongs to no known training. Remove it.")
    state.wait_for_everyone()
    if state.is_main_process:
        write_atomically(file, json.dumps({**started, "times": started["times"] + 1}))
    return int(started["times"])


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint. The trainer writes its state file last, so one that was cut short has none."""
    found = []
    for path in folder.glob("checkpoint-*"):
        try:
            step = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
        except (OSError, ValueError, KeyError):
            continue
        found.append((int(step), path))
    return max(found)[1] if found else None


def _trainer(training: Training, prepared: Prepared, model: Any, dtype: torch.dtype, state: PartialState) -> Any:
    settings = training.settings
    share, rest = divmod(settings.batch_size, state.num_processes)
    micro = settings.micro_batch_size or share
    if rest or share % micro:
        raise ArgumentError(
            f"batch_size must be a multiple of processes x micro_batch_size, got {settings.batch_size} for "
            f"{state.num_processes} x {micro}."
        )
    steps = math.ceil(settings.epochs * math.ceil(len(prepared.encoded) / settings.batch_size))
    half = dtype == torch.bfloat16
    checkpointing: dict[str, Any] = {}
    if settings.gradient_checkpointing:
        # The reentrant form needs inputs with gradients, and the embeddings of a LoRA have none.
        checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    args = TrainingArguments(
        output_dir=str(training.output / CHECKPOINTS),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=share // micro,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        lr_scheduler_type=settings.schedule,
        warmup_steps=round(settings.warmup * steps),
        max_grad_norm=settings.max_grad_norm,
        bf16=half,
        use_cpu=(training.device or state.device.type) == "cpu",
        seed=settings.seed,
        data_seed=settings.seed,
        remove_unused_columns=False,  # `collate` reads what it needs
        save_strategy="steps",
        save_steps=max(1, math.ceil(steps / settings.checkpoints)),
        save_total_limit=None if training.keep_checkpoints else 2,
        eval_strategy="steps" if prepared.validation else "no",
        eval_steps=max(1, math.ceil(steps / settings.checkpoints)),
        eval_on_start=bool(prepared.validation),
        per_device_eval_batch_size=micro,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=training.device != "cpu" and torch.cuda.is_available(),
        **checkpointing,
    )
    if args.n_gpu > 1:
        raise ArgumentError(
            f"{args.n_gpu} GPUs are visible to one process, and a process trains on one. Use all of them by accelerate "
            "launch -m lm_eval_lora_drop.commands.main train ..., or name one: CUDA_VISIBLE_DEVICES=0."
        )
    data, validation = (
        [{"input_ids": one.input_ids, "labels": one.labels} for one in some]
        for some in (prepared.encoded, prepared.validation)
    )
    bar = [TrainingProgressBar(training.output.name)] if state.is_main_process else []
    trainer = AnswerTrainer(
        model=model,
        args=args,
        train_dataset=data,
        eval_dataset=validation or None,
        data_collator=collate,
        processing_class=prepared.tokenizer,
        callbacks=[*bar, *training.callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _seconds_before(checkpoint: Path | None) -> float:
    """The seconds that the checkpoint's history took, as the progress bar wrote them there."""
    if checkpoint is None:
        return 0.0
    history = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return float(next((one["seconds"] for one in reversed(history) if "seconds" in one), 0.0))


def _record(
    training: Training, prepared: Prepared, identity: str, trainer: Any,
    *, num_layers: int, trained_layers: str, dtype: torch.dtype, seconds: float, resumed: int,
) -> TrainingRecord:  # fmt: skip
    settings, documents = training.settings, prepared.documents
    lengths = [len(one.input_ids) for one in prepared.encoded]
    answers = [sum(label >= 0 for label in one.labels) for one in prepared.encoded]
    steps = tuple(
        StepRecord(
            step=int(one["step"]),
            epoch=float(one["epoch"]),
            loss=float(one["loss"]),
            learning_rate=one.get("learning_rate"),
        )
        for one in trainer.state.log_history
        if "loss" in one
    )
    # By step: a resumed training measures its checkpoint once more.
    validation = {int(one["step"]): float(one["eval_loss"]) for one in trainer.state.log_history if "eval_loss" in one}
    return TrainingRecord(
        schema=SCHEMA,
        version=__version__,
        base_model=training.base_name or training.base,
        base_fingerprint=base_fingerprint(training.base, training.revision),
        num_layers=num_layers,
        trained_layers=trained_layers,
        trained_parameters=sum(one.numel() for one in trainer.model.parameters() if one.requires_grad),
        settings=plain({**dataclasses.asdict(settings), "lora_alpha": settings.alpha}),
        task=plain(dataclasses.asdict(training.task)),
        data=DataRecord(
            task=training.task.task,
            task_version=prepared.task_version,
            split=documents.split,
            sha256=prepared.sha256,
            doc_ids=tuple(one.doc_id for one in prepared.encoded),
            held_out=documents.held_out,
            leaked=documents.leaked,
            repeated=documents.repeated,
            unfit=documents.unfit,
            cut=sum(one.cut > 0 for one in prepared.encoded),
            tokens=sum(lengths),
            answer_tokens=sum(answers),
            first_prompt=prepared.examples[0].prompt,
            first_answer=prepared.examples[0].answer,
        ),
        digest=identity,
        precision=str(dtype).removeprefix("torch."),
        device=trainer.args.device.type,
        processes=trainer.args.world_size,
        seconds=round(seconds, 1),
        resumed=resumed,
        libraries=library_versions(),
        steps=steps,
        validation=tuple(ValidationLoss(step=step, loss=loss) for step, loss in sorted(validation.items())),
    )
