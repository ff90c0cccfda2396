"""What a study's finished cells hold, document by document: the arms that its report compares.

An arm is one training under one choice on one task, over its seeds. All its adapters answered the same documents, which
is checked: seeds and arms are compared document by document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.find import find_runs
from lm_eval_lora_drop.record.runs import Sample, TaskRun
from lm_eval_lora_drop.record.schema import TaskRecord
from lm_eval_lora_drop.show.report.compare import clusters_of
from lm_eval_lora_drop.show.report.outputs import scored_texts
from lm_eval_lora_drop.statistics import corpus
from lm_eval_lora_drop.statistics.clusters import Codes
from lm_eval_lora_drop.statistics.crossed import CrossedMean, crossed_mean
from lm_eval_lora_drop.statistics.significance import is_mean, numbers_or_missing, span
from lm_eval_lora_drop.study.config import Study, StudyTask
from lm_eval_lora_drop.study.plan import Cell, cell_folder, plan, read_cell

Floats = NDArray[np.float64]
SHAPE = ("words", "characters", "cut_off", "empty", "unread")
"""Metrics of what outputs look like, which the tasks of this package have beside those of their quality."""


@dataclass(frozen=True)
class Arm:
    """`training` is the study's name of it (of an existing adapter: its folder's name; `base` for the base model).

    `runs[r]` is what was evaluated with the seed `of_runs[r]`, None where an adapter was not trained by the study. A
    seed has several runs where random sets of layers are a control: they count as one, their mean. `control` is the
    number of layers that such a control keeps; `metrics` are (metric, filter), the task's first one first.
    """

    task: StudyTask
    training: str
    choice: str
    of_runs: tuple[int | None, ...]
    runs: tuple[TaskRun, ...]
    control: int | None = None

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """Each seed once."""
        return tuple(dict.fromkeys(self.of_runs))

    @property
    def name(self) -> str:
        """For tables: `full auto`; the base model is nobody's adapter."""
        return self.choice if self.choice == "base" else f"{self.training}, {self.choice}"

    @property
    def records(self) -> tuple[TaskRecord, ...]:
        """What each run wrote about its choice."""
        return tuple(run.record for run in self.runs if run.record is not None)

    @property
    def metrics(self) -> list[tuple[str, str]]:
        """The (metric, filter) that every run has, in the task's order."""
        return [key for key in self.runs[0].scores if all(key in run.scores for run in self.runs)]

    @property
    def compared(self) -> list[tuple[str, str]]:
        """Those of the task's quality: its first, and all with a direction but the shape of the output."""
        first, *others = self.metrics
        return [first, *(key for key in others if key[0] not in SHAPE and self.higher_is_better(key[0]) is not None)]

    def label(self, key: tuple[str, str]) -> str:
        """A metric for tables, with its filter where the task scores several filters by it."""
        return key[0] if sum(name == key[0] for name, _ in self.metrics) == 1 else ",".join(key)

    def higher_is_better(self, metric: str) -> bool | None:
        """As the task says, None where it says nothing."""
        return self.runs[0].higher_is_better.get(metric)

    def values(self, metric: str, filter_name: str) -> Floats:
        """`(seeds, documents)`: per-document numbers whose mean is each run's score, NaN where a document has none.

        Of a corpus metric they are the jackknife's pseudo-values.

        Raises:
            ArgumentError: the score is neither a mean of logged numbers nor a corpus metric that can be rebuilt.
        """
        rows = np.stack([_values(run, metric, filter_name) for run in self.runs])
        return np.stack([rows[[one == seed for one in self.of_runs]].mean(axis=0) for seed in self.seeds])

    def of(self, seeds: Sequence[int | None]) -> Arm:
        """This arm with these seeds only, in this order."""
        chosen = [
            (seed, run) for seed in seeds for one, run in zip(self.of_runs, self.runs, strict=True) if one == seed
        ]
        return replace(self, of_runs=tuple(seed for seed, _ in chosen), runs=tuple(run for _, run in chosen))

    def samples(self, filter_name: str) -> list[list[Sample]]:
        """The logged documents of each run."""
        return [run.samples(filter_name) for run in self.runs]

    def clusters(self, filter_name: str) -> Codes | None:
        """Which documents belong together, None where the task names no cluster."""
        return clusters_of(self.runs[0], self.runs[0].samples(filter_name))


def arms(study: Study) -> tuple[Arm, ...]:
    """The arms of all finished cells, in the order of the plan.

    Raises:
        ArgumentError: a results file is damaged, or two runs of a task have not evaluated the same documents.
    """
    found: dict[tuple[str, str, str], list[tuple[int | None, TaskRun]]] = {}
    tasks: dict[str, StudyTask] = {}
    controls: dict[str, int] = {}
    for _, cells in plan(study):
        for cell in cells:
            if read_cell(study, cell) is None:
                continue
            tasks[cell.task.name] = cell.task
            choice = _choice(cell)
            if cell.choice.control is not None:
                controls[choice] = cell.choice.control[1]
            training = "" if cell.choice.is_base else _training(cell)
            seed = cell.training.settings.seed if cell.training else None
            found.setdefault((cell.task.name, training, choice), []).append((seed, _run(study, cell)))
    gathered = tuple(
        Arm(
            tasks[task],
            training,
            choice,
            tuple(seed for seed, _ in runs),
            tuple(run for _, run in runs),
            controls.get(choice),
        )
        for (task, training, choice), runs in found.items()
    )
    for name in tasks:
        _check_documents([run for arm in gathered if arm.task.name == name for run in arm.runs])
    return gathered


def _choice(cell: Cell) -> str:
    return cell.choice.label + (f" by {cell.metric}" if cell.metric else "")


def _training(cell: Cell) -> str:
    return cell.training.name if cell.training else Path(cell.adapter).name


def _run(study: Study, cell: Cell) -> TaskRun:
    runs, issues = find_runs([cell_folder(study, cell)])
    if not runs:
        raise ArgumentError("; ".join(map(str, issues)))
    run = runs[-1]
    if cell.task.task not in run.tasks:
        raise ArgumentError(f"{run.path} must hold the task {cell.task.task}. Remove its folder; the cell runs again.")
    return run.tasks[cell.task.task]


def _check_documents(runs: Sequence[TaskRun]) -> None:
    for filter_name in runs[0].filters:
        first: Mapping[str, object] | None = None
        for run in runs:
            logged = run.documents.get(filter_name)
            if logged is None:
                raise ArgumentError(
                    f"{run.run.path}: its samples are not there. Remove its folder; the cell runs again."
                )
            mine = dict(zip(map(str, logged.doc_ids), ((one[0], one[2]) for one in logged.identity), strict=True))
            if first is None:
                first = mine
            elif mine != first:
                raise ArgumentError(
                    f"{run.run.path} has not evaluated the same documents as {runs[0].run.path}. Did the data change "
                    "in between? Remove the cells of before."
                )


def _values(run: TaskRun, metric: str, filter_name: str) -> Floats:
    score = run.scores[metric, filter_name].value
    found = numbers_or_missing(run.documents[filter_name].metrics.get(metric, [""]))
    if found is not None:
        if is_mean(found, score):
            return found
    elif (rebuilt := corpus.corpus_metric(run.aggregations.get(metric, "mean"))) is not None:
        texts = scored_texts(run.samples(filter_name), metric)
        if texts is not None and corpus.reproduces_score(rebuilt, *texts, score):
            return corpus.pseudo_values(rebuilt, *texts)
    raise ArgumentError(
        f"{run.run.path}: {metric} is aggregated by {run.aggregations.get(metric, 'mean')}: not a mean of its "
        "documents, nor a corpus metric that can be rebuilt."
    )


def mean_of(values: Floats, clusters: Codes | None, *others: Floats) -> CrossedMean:
    """The mean of `values`, `(seeds, documents)`, over the documents that have one under every seed; `others` are
    scores of the same metric that show its range.

    Raises:
        ArgumentError: no document has a value under every seed.
    """
    there = np.isfinite(values).all(axis=0)
    if not there.any():
        raise ArgumentError("no document has a value under every seed.")
    scores = np.concatenate([one[np.isfinite(one)] for one in others or (values,)])
    codes = None if clusters is None else np.unique(clusters[there], return_inverse=True)[1]
    return crossed_mean(values[:, there], span=span(scores), clusters=codes)
