"""A study's file, read and checked before anything is loaded: tasks x trainings x choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import read_yaml, user_path
from lm_eval_lora_drop.options import (
    EvaluationOptions,
    StudyOptions,
    StudyTaskOptions,
    StudyTrainingOptions,
    TrainingOptions,
    declared,
    parse_model_args,
    read,
)
from lm_eval_lora_drop.sweep.candidates import check_names
from lm_eval_lora_drop.sweep.tradeoffs.bounds import parse_bounded
from lm_eval_lora_drop.text import did_you_mean, shown
from lm_eval_lora_drop.train.settings import TaskSettings, TrainingSettings, read_settings
from lm_eval_lora_drop.variant import VariantSpec, parse_boundary

_PROMPT = ("num_fewshot", "apply_chat_template", "fewshot_as_multiturn", "system_instruction")


@dataclass(frozen=True)
class StudyChoice:
    """What to keep of an adapter: as `boundary` and `layers` of the model say it, or by a sweep over other candidates
    than boundaries (the model's `sweep_candidates`). `control` is the kind of a control (`upper`, `random`) and its
    number of layers."""

    spec: VariantSpec
    candidates: str | None = None
    control: tuple[str, int] | None = None

    @property
    def is_base(self) -> bool:
        """Whether it is the base model, the same for every adapter."""
        return self.spec.kind == "base"

    @property
    def is_swept(self) -> bool:
        """Whether validation documents decide by a sweep."""
        return self.spec.kind == "auto"

    @property
    def model_args(self) -> dict[str, str]:
        """What it adds to the study's model_args."""
        name, _, value = str(self.spec).partition("=")
        return {name: value} | ({"sweep_candidates": self.candidates} if self.candidates else {})

    @property
    def label(self) -> str:
        """For tables: `full`, `auto`, `20`, `layers=10-31`, `sweep_candidates=upper`, `upper 19 layers`."""
        if self.control is not None:
            return "{} {} layers".format(*self.control)
        return str(self).removeprefix("boundary=")

    def __str__(self) -> str:
        return f"sweep_candidates={self.candidates}" if self.candidates else str(self.spec)


@dataclass(frozen=True, kw_only=True)
class StudyTask:
    """A task of the study: `name` is the study's word for it. `evaluation` goes to `lm_eval.simple_evaluate`."""

    name: str
    task: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StudyTraining:
    """One adapter to be trained: on `task`, under the study's name `name`, with one seed."""

    name: str
    task: StudyTask
    settings: TrainingSettings
    choices: tuple[StudyChoice, ...]

    @property
    def folder(self) -> str:
        """The adapter's folder in the study's."""
        return f"{self.task.name}-{self.name}-seed{self.settings.seed}"


@dataclass(frozen=True, kw_only=True)
class StudyAdapter:
    """An adapter that exists already, evaluated on every task."""

    path: str
    choices: tuple[StudyChoice, ...]


@dataclass(frozen=True, kw_only=True)
class Study:
    """The whole file. `model_args` are those of `hf-lora-drop`; `base_name` is what adapters call their base model;
    `controls` random sets of layers stand beside each choice of a fixed K; rates are documents per second."""

    path: Path
    model_args: Mapping[str, Any]
    base_name: str | None
    output: Path
    tasks: tuple[StudyTask, ...]
    trainings: tuple[StudyTraining, ...]
    adapters: tuple[StudyAdapter, ...]
    include_path: str | None
    controls: int = 0
    training_rate: float | None = None
    evaluation_rate: float | None = None

    def asked(self, task: StudyTask) -> TaskSettings:
        """How a task's prompts are made, in training as in evaluation."""
        return TaskSettings(
            task=task.task,
            include_path=self.include_path,
            metadata=dict(task.metadata),
            **{key: task.evaluation[key] for key in _PROMPT if key in task.evaluation},
        )


def read_study(path: Path, output: Path | None = None) -> Study:
    """Read and check a study; `output` takes the place of the file's.

    Raises:
        ArgumentError: the file cannot be read, or an entry cannot be used as written.
    """
    data = StudyOptions(
        **read(_mapping(path, read_yaml(path, "a study, YAML"), "the file"), StudyOptions, where=str(path))
    )
    _check_model_args(path, data.model_args)
    if not (output or data.output):
        raise ArgumentError(f"{path}: output is missing, so there is no place to write to. Example: output: out/study")
    tasks = tuple(_task(path, data, name, entry) for name, entry in data.tasks.items())
    choices = _choices(path, data.choices, "choices")
    trainings = _trainings(path, data.trainings, tasks, choices)
    if not tasks or not (data.adapters or trainings):
        raise ArgumentError(
            f"{path} must have tasks, and trainings or adapters, e.g. tasks: [lora_drop_samsum] and "
            "trainings: {full: {seeds: [0, 1, 2]}}."
        )
    return Study(
        path=path,
        model_args=data.model_args,
        base_name=data.base_name,
        output=user_path(output or str(data.output), "output"),
        tasks=tasks,
        trainings=trainings,
        adapters=tuple(StudyAdapter(path=one, choices=choices) for one in data.adapters),
        include_path=data.include_path,
        controls=data.controls,
        training_rate=data.training_rate,
        evaluation_rate=data.evaluation_rate,
    )


def _check_model_args(path: Path, model_args: Mapping[str, Any]) -> None:
    """What would fail in the first cell, after a training."""
    if "pretrained" not in model_args:
        raise ArgumentError(f"{path}: model_args must name the base model, e.g. model_args: {{pretrained: ...}}.")
    for key in ("peft", "boundary", "layers"):
        if key in model_args:
            raise ArgumentError(f"{path}: model_args must not have {key}: adapters and choices of the study say it.")
    try:
        args, _ = parse_model_args(model_args, known=("pretrained", "batch_size"))
        check_names(args.sweep_candidates, args.sweep_size)
        parse_bounded(args.sweep_select or "")
    except ArgumentError as error:
        raise ArgumentError(f"{path}: model_args: {error}") from None


def _task(path: Path, data: StudyOptions, name: Any, entry: Any) -> StudyTask:
    where = f"tasks.{shown(name)}"
    given = _mapping(path, entry or {}, where)
    one = StudyTaskOptions(**read(given, StudyTaskOptions, where=str(path), inside=where))
    return StudyTask(
        name=str(name),
        task=one.task or str(name),
        metadata=one.metadata,
        training=one.training,
        evaluation=read(
            {**data.evaluation, **one.evaluation}, EvaluationOptions, where=str(path), inside=f"{where}.evaluation"
        ),
        metrics=one.metrics or data.metrics,
    )


def _trainings(
    path: Path, entries: Mapping[str, Any], tasks: tuple[StudyTask, ...], choices: tuple[StudyChoice, ...]
) -> tuple[StudyTraining, ...]:
    found: list[tuple[int, int, StudyTraining]] = []
    by_name = {task.name: task for task in tasks}
    for place, (name, entry) in enumerate(entries.items()):
        where = f"trainings.{shown(name)}"
        given = _mapping(path, entry or {}, where)
        if "seed" in given:
            raise ArgumentError(f"{path}: {where} must say seeds (a list), got seed.")
        values = read(given, StudyTrainingOptions, TrainingOptions, where=str(path), inside=where)
        settings = {key: values.pop(key) for key in declared(TrainingOptions) if key in values}
        one = StudyTrainingOptions(**values)
        mine = _choices(path, one.choices, f"{where}.choices") if one.choices else choices
        for task_name in one.tasks or by_name:
            if task_name not in by_name:
                raise ArgumentError(
                    f"{path}: {where}.tasks must be tasks of the study, got {task_name!r}."
                    + did_you_mean(task_name, by_name, otherwise=f"There are: {', '.join(by_name)}.")
                )
            task = by_name[task_name]
            for order, seed in enumerate(one.seeds):
                numbers = read_settings(
                    {**task.training, **settings, "seed": seed}, f"{path}: tasks.{task_name}.training"
                )
                found.append((order, place, StudyTraining(name=str(name), task=task, settings=numbers, choices=mine)))
    # Every training once before any of them with a second seed: a study that is cut short has something of everything.
    return tuple(training for _, _, training in sorted(found, key=lambda one: one[:2]))


def _choices(path: Path, given: Sequence[str], where: str) -> tuple[StudyChoice, ...]:
    found: list[StudyChoice] = []
    for text in given:
        name, _, value = text.partition("=")
        try:
            if name in ("layers", "sweep_candidates", "boundary") and value:
                args, _ = parse_model_args({name: value}, ())
                check_names(args.sweep_candidates, args.sweep_size)
                found.append(StudyChoice(args.spec, value if name == "sweep_candidates" else None))
            else:
                found.append(StudyChoice(parse_boundary(text)))
        except ArgumentError as error:
            raise ArgumentError(f"{path}: {where}: {error}") from None
    if not found:
        raise ArgumentError(f"{path}: {where} must not be empty, e.g. [full, base, auto, default].")
    return tuple(dict.fromkeys(found))


def _mapping(path: Path, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ArgumentError(f"{path}: {where} must hold keys and values, got {shown(value)}.")
    return value
