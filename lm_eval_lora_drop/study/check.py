"""What is wrong with a study, found before anything is trained, and how much work is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple, ParamSpec, TypeVar

from lm_eval_lora_drop.adapter import files as adapter_files
from lm_eval_lora_drop.errors import LoraDropError
from lm_eval_lora_drop.options import parse_model_args
from lm_eval_lora_drop.study.config import Study
from lm_eval_lora_drop.study.plan import Cell, Unit, num_layers, plan, read_cell
from lm_eval_lora_drop.study.trainings import adapter_folder, is_trained
from lm_eval_lora_drop.sweep.documents.reference_likelihood import REFERENCE_LOGLIKELIHOOD
from lm_eval_lora_drop.sweep.metric import resolve_metric
from lm_eval_lora_drop.text import duration_text, significant
from lm_eval_lora_drop.train.documents import check_trainable
from lm_eval_lora_drop.train.examples import load_binding
from lm_eval_lora_drop.train.lora import check_lora, load_tokenizer
from lm_eval_lora_drop.train.record import read_record

P = ParamSpec("P")
T = TypeVar("T")
_SHARED = 5
"""How many times faster a sweep is than as many separate evaluations (docs/evidence/performance.md)."""


class TaskSize(NamedTuple):
    """Documents of a task: of its training split (0 without one), and of the evaluated one, before any limit."""

    training: int
    test: int


@dataclass(frozen=True)
class WorkEstimate:
    """Trainings or cells: how many, how many of them done, and an estimate of the rest.

    `seconds_left` is None where nothing is known to estimate it from; `basis` is what it rests on, or what is missing.
    """

    what: str
    number: int
    done: int
    seconds_left: float | None
    basis: str

    def __str__(self) -> str:
        said = f"{self.number} {self.what}, {self.done} done"
        if self.done == self.number:
            return said
        left = "time unknown" if self.seconds_left is None else f"about {duration_text(self.seconds_left)} left"
        return f"{said}, {left} ({self.basis})"


@dataclass(frozen=True)
class StudyCheck:
    """`units` is the plan, empty where it depends on a base model that cannot be read; `trained` the folders of the
    trainings that are done; `refusals` are sentences, one for each thing that cannot be run as written."""

    units: tuple[Unit, ...]
    trained: frozenset[str]
    refusals: tuple[str, ...]
    trainings: WorkEstimate
    cells: WorkEstimate


def check_study(study: Study, *, train: bool) -> StudyCheck:
    """Read tokenizer and tasks, find the adapters that are to exist, fit LoRA and choices to the model's layers.

    Args:
        study: the study.
        train: whether missing adapters will be trained.
    """
    refusals: list[str] = []

    def attempt(name: str, work: Callable[P, T], *args: P.args, **given: P.kwargs) -> T | None:
        try:
            return work(*args, **given)
        except LoraDropError as error:
            refusals.append(f"{study.path}: {name}: {error}")
            return None

    base, revision = str(study.model_args["pretrained"]), study.model_args.get("revision")
    remote = bool(study.model_args.get("trust_remote_code", False))
    tokenizer = attempt("model_args", load_tokenizer, base, revision, trust_remote_code=remote)
    layers = None if tokenizer is None else num_layers(study)
    trained = frozenset(
        one.folder for one in study.trainings if attempt(f"trainings.{one.name}", is_trained, study, one)
    )
    missing = [one for one in study.trainings if train and one.folder not in trained]
    sizes: dict[str, TaskSize] = {}
    for task in study.tasks:
        name, asked = f"tasks.{task.name}", study.asked(task)
        if tokenizer is None and asked.apply_chat_template:
            continue  # its prompts need the tokenizer
        binding = attempt(name, load_binding, asked, tokenizer)
        if binding is None:
            continue
        fit = attempt(name, check_trainable, binding) if any(one.task is task for one in missing) else None
        docs = (binding.task.training_docs() if fit else (), binding.task.eval_docs)
        sizes[task.name] = TaskSize(*(len(one) if hasattr(one, "__len__") else len(list(one)) for one in docs))
        for metric in task.metrics:
            args, _ = parse_model_args({"sweep_metric": metric}, ())
            if args.sweep_metric != REFERENCE_LOGLIKELIHOOD:
                attempt(f"{name}.metrics", resolve_metric, binding.task, args.sweep_metric)
    for adapter in study.adapters:
        attempt("adapters", adapter_files.open_adapter, adapter.path)
    # Controls are sets of the model's layers.
    units = (attempt("choices", plan, study) or ()) if layers is not None or not study.controls else ()
    cells = [cell for unit in units for cell in unit.cells]
    if layers is not None:
        shapes = {(one.settings.layers, one.settings.target_modules, one.settings.rank): one for one in missing}
        for one in shapes.values():
            attempt(f"trainings.{one.name}", check_lora, base, revision, one.settings, trust_remote_code=remote)
        for choice in dict.fromkeys(cell.choice for cell in cells):
            attempt("choices", choice.spec.resolve, layers)
    trainings, evaluated = _trainings(study, sizes, trained), _cells(study, cells, sizes, layers)
    return StudyCheck(units, trained, tuple(refusals), trainings, evaluated)


def _trainings(study: Study, sizes: Mapping[str, TaskSize], trained: Set[str]) -> WorkEstimate:
    records = [read_record(adapter_folder(study, one)) for one in study.trainings if one.folder in trained]
    done = [(len(one.data.doc_ids) * float(one.settings["epochs"]), one.seconds) for one in records if one]
    left = [
        min(one.settings.limit or size.training, size.training) * one.settings.epochs
        if (size := sizes.get(one.task.name))
        else None
        for one in study.trainings
        if one.folder not in trained
    ]
    return _work("trainings", done, left, "training_rate", study.training_rate)


def _cells(study: Study, cells: Sequence[Cell], sizes: Mapping[str, TaskSize], layers: int | None) -> WorkEstimate:
    done, left = [], []
    for cell in cells:
        size = _answers(study, cell, sizes.get(cell.task.name), layers)
        entry = read_cell(study, cell)
        if entry is None:
            left.append(size)
        else:
            done.append((size or 0.0, float(entry["seconds"])))
    return _work("cells", done, left, "evaluation_rate", study.evaluation_rate)


def _answers(study: Study, cell: Cell, size: TaskSize | None, layers: int | None) -> float | None:
    """How many documents a cell answers, those of a sweep at the price of the shared pass."""
    if size is None or layers is None:
        return None
    limit = cell.task.evaluation.get("limit")
    number = float(size.test if limit is None else min(size.test, limit if limit >= 1 else limit * size.test))
    if not cell.choice.is_swept:
        return number
    args, _ = parse_model_args({key: value for key, value in study.model_args.items() if key == "sweep_limit"}, ())
    return number + args.sweep_limit * (layers + 1) / _SHARED


def _work(
    what: str, done: Sequence[tuple[float, float]], left: Sequence[float | None], key: str, given: float | None
) -> WorkEstimate:
    seconds = sum(took for _, took in done)
    measured = sum(size for size, _ in done) / seconds if seconds else None
    rate = measured or given
    total = len(done) + len(left)
    if rate is None:
        return WorkEstimate(
            what, total, len(done), None, f"none has finished; {key} in the study's file is an estimate"
        )
    basis = f"{significant(rate)} documents per second, {'measured' if measured else key}"
    known = [size for size in left if size is not None]
    if len(known) < len(left):
        return WorkEstimate(what, total, len(done), None, "a task or the base model cannot be read")
    return WorkEstimate(what, total, len(done), sum(known) / rate, basis)
