"""A study's file, read and checked before anything is loaded: tasks x trainings x choices."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.backends.args import parse_families
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import read_yaml, user_path
from lm_eval_lora_drop.spec import VariantSpec, parse_boundary, parse_layers, shown
from lm_eval_lora_drop.train.settings import TaskSettings, TrainingSettings, read_settings

EVALUATION = (
    *("limit", "num_fewshot", "batch_size", "apply_chat_template", "fewshot_as_multiturn", "system_instruction"),
    *("gen_kwargs", "bootstrap_iters", "device"),
)
"""What goes to `lm_eval.simple_evaluate` as it is."""
_PROMPT = ("num_fewshot", "apply_chat_template", "fewshot_as_multiturn", "system_instruction")
_KEYS = (
    "model_args",
    "base_name",
    "output",
    "tasks",
    "trainings",
    "adapters",
    "choices",
    "metrics",
    "evaluation",
    "include_path",
)
_TASK_KEYS = ("task", "metadata", "training", "evaluation", "metrics")
_NOT_SETTINGS = ("seeds", "tasks", "choices")
DEFAULT_CHOICES = ("full", "base", "auto", "default")


@dataclass(frozen=True)
class Choice:
    """What to keep of an adapter: as `boundary` and `layers` of the model say it, or by a sweep over other candidates
    than boundaries (`family`, the model's `sweep_family`)."""

    spec: VariantSpec
    family: str | None = None

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
        return {name: value} | ({"sweep_family": self.family} if self.family else {})

    @property
    def label(self) -> str:
        """For tables: `full`, `auto`, `20`, `layers=10-31`, `sweep_family=upper`."""
        return str(self).removeprefix("boundary=")

    def __str__(self) -> str:
        return f"sweep_family={self.family}" if self.family else str(self.spec)


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
    choices: tuple[Choice, ...]

    @property
    def folder(self) -> str:
        """The adapter's folder in the study's."""
        return f"{self.task.name}-{self.name}-seed{self.settings.seed}"


@dataclass(frozen=True, kw_only=True)
class StudyAdapter:
    """An adapter that exists already, evaluated on every task."""

    path: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True, kw_only=True)
class Study:
    """The whole file. `model_args` are those of `hf-lora-drop`; `base_name` is what adapters call their base model."""

    path: Path
    model_args: Mapping[str, Any]
    base_name: str | None
    output: Path
    tasks: tuple[StudyTask, ...]
    trainings: tuple[StudyTraining, ...]
    adapters: tuple[StudyAdapter, ...]
    include_path: str | None

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
    data = _mapping(path, _load(path), "the file")
    _known(path, data, _KEYS, "")
    model_args = _mapping(path, data.get("model_args"), "model_args")
    if "pretrained" not in model_args:
        raise ArgumentError(f"{path}: model_args must name the base model, e.g. model_args: {{pretrained: ...}}.")
    for key in ("peft", "boundary", "layers"):
        if key in model_args:
            raise ArgumentError(f"{path}: model_args must not have {key}: adapters and choices of the study say it.")
    if not (output or data.get("output")):
        raise ArgumentError(f"{path} must have output, a folder.")
    tasks = _tasks(path, data)
    choices = _choices(path, data.get("choices", list(DEFAULT_CHOICES)), "choices")
    given = data.get("adapters") or []
    adapters = tuple(StudyAdapter(path=one, choices=choices) for one in _texts(path, given, "adapters"))
    trainings = _trainings(path, data, tasks, choices)
    if not adapters and not trainings:
        raise ArgumentError(f"{path} must have trainings or adapters, e.g. trainings: {{full: {{seeds: [0, 1, 2]}}}}.")
    return Study(
        path=path,
        model_args=model_args,
        base_name=data.get("base_name"),
        output=user_path(output or shown(data["output"], 4096), "output"),
        tasks=tasks,
        trainings=trainings,
        adapters=adapters,
        include_path=data.get("include_path"),
    )


def _tasks(path: Path, data: Mapping[str, Any]) -> tuple[StudyTask, ...]:
    given = data.get("tasks")
    if isinstance(given, list):
        given = {name: {} for name in _texts(path, given, "tasks")}
    entries = _mapping(path, given, "tasks")
    if not entries:
        raise ArgumentError(f"{path} must have tasks, e.g. tasks: [lora_drop_samsum].")
    common = _mapping(path, data.get("evaluation") or {}, "evaluation")
    metrics = _texts(path, data.get("metrics") or [], "metrics")
    found = []
    for name, entry in entries.items():
        where = f"tasks.{name}"
        one = _mapping(path, entry or {}, where)
        _known(path, one, _TASK_KEYS, f"{where}.")
        evaluation = {**common, **_mapping(path, one.get("evaluation") or {}, f"{where}.evaluation")}
        _known(path, evaluation, EVALUATION, f"{where}.evaluation.")
        found.append(
            StudyTask(
                name=str(name),
                task=str(one.get("task", name)),
                metadata=_mapping(path, one.get("metadata") or {}, f"{where}.metadata"),
                training=_mapping(path, one.get("training") or {}, f"{where}.training"),
                evaluation=evaluation,
                metrics=tuple(_texts(path, one.get("metrics") or metrics, f"{where}.metrics")),
            )
        )
    return tuple(found)


def _trainings(
    path: Path, data: Mapping[str, Any], tasks: tuple[StudyTask, ...], choices: tuple[Choice, ...]
) -> tuple[StudyTraining, ...]:
    entries = _mapping(path, data.get("trainings") or {}, "trainings")
    found: list[tuple[int, int, StudyTraining]] = []
    by_name = {task.name: task for task in tasks}
    for place, (name, entry) in enumerate(entries.items()):
        where = f"trainings.{name}"
        one = _mapping(path, entry or {}, where)
        _known(path, one, (*_NOT_SETTINGS, *(f.name for f in dataclasses.fields(TrainingSettings))), f"{where}.")
        if "seed" in one:
            raise ArgumentError(f"{path}: {where} must say seeds (a list), got seed.")
        settings = {key: value for key, value in one.items() if key not in _NOT_SETTINGS}
        seeds = one.get("seeds", [0])
        if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
            raise ArgumentError(f"{path}: {where}.seeds must be a list of integers of at least 0, got {shown(seeds)}.")
        mine = _choices(path, one["choices"], f"{where}.choices") if "choices" in one else choices
        for task_name in _texts(path, one.get("tasks", list(by_name)), f"{where}.tasks"):
            if task_name not in by_name:
                raise ArgumentError(
                    f"{path}: {where}.tasks must be tasks of the study, got {task_name!r}."
                    + _hint(task_name, tuple(by_name))
                )
            task = by_name[task_name]
            for order, seed in enumerate(seeds):
                numbers = read_settings({**task.training, **settings, "seed": seed}, f"{path}: {where}")
                found.append((order, place, StudyTraining(name=str(name), task=task, settings=numbers, choices=mine)))
    # Every training once before any of them with a second seed: a study that is cut short has something of everything.
    return tuple(training for _, _, training in sorted(found, key=lambda one: one[:2]))


def _choices(path: Path, given: Any, where: str) -> tuple[Choice, ...]:
    found: list[Choice] = []
    for text in _texts(path, given, where):
        name, equals, value = text.partition("=")
        try:
            if equals and name == "sweep_family":
                found.append(Choice(parse_boundary("auto"), "+".join(parse_families(value))))
            elif equals and name == "layers":
                found.append(Choice(parse_layers(value)))
            else:
                found.append(Choice(parse_boundary(value if equals and name == "boundary" else text)))
        except ArgumentError as error:
            raise ArgumentError(f"{path}: {where}: {error}") from None
    if not found:
        raise ArgumentError(f"{path}: {where} must not be empty, e.g. [{', '.join(DEFAULT_CHOICES)}].")
    return tuple(dict.fromkeys(found))


def _load(path: Path) -> Any:
    return read_yaml(path, "a study, YAML")


def _mapping(path: Path, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ArgumentError(f"{path}: {where} must hold keys and values, got {shown(value)}.")
    for key in value:
        if not isinstance(key, str):
            raise ArgumentError(f"{path}: the keys of {where} must be texts, got {shown(key)}. Put it in quotes.")
    return value


def _known(path: Path, data: Mapping[str, Any], keys: tuple[str, ...], prefix: str) -> None:
    for key in data:
        if key not in keys:
            raise ArgumentError(f"{path} has an unknown key {prefix}{shown(key)}.{_hint(shown(key), keys)}")


def _hint(word: str, words: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word, words, n=1)
    return f" Did you mean {near[0]}?" if near else f" There are: {', '.join(words)}."


def _texts(path: Path, value: Any, where: str) -> list[str]:
    if isinstance(value, str | int) and not isinstance(value, bool):
        return [shown(value, 4096)]
    if not isinstance(value, list) or not all(isinstance(one, str | int) for one in value):
        raise ArgumentError(f"{path}: {where} must be a list of texts or numbers, got {shown(value)}.")
    return [shown(one, 4096) for one in value]
