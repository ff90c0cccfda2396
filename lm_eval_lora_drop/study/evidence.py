"""What a study's finished cells hold, document by document: the arms that its report compares.

An arm is one training under one choice on one task, over its seeds. All its adapters answered the same documents, which
is checked: seeds and arms are compared document by document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from lm_eval_lora_drop.statistics.significance import is_mean, numbers
from lm_eval_lora_drop.study.config import Study, StudyTask
from lm_eval_lora_drop.study.plan import Cell, cell_folder, plan, read_cell

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Arm:
    """`training` is the study's name of it (of an existing adapter: its folder's name; `base` for the base model).

    `runs[s]` is what was evaluated with `seeds[s]`, None where an adapter was not trained by the study; `metrics` are
    (metric, filter), the task's first one first.
    """

    task: StudyTask
    training: str
    choice: str
    seeds: tuple[int | None, ...]
    runs: tuple[TaskRun, ...]

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

    def higher_is_better(self, metric: str) -> bool | None:
        """As the task says, None where it says nothing."""
        return self.runs[0].higher_is_better.get(metric)

    def values(self, metric: str, filter_name: str) -> Floats:
        """`(seeds, documents)`: per-document numbers whose mean is each run's score.

        Of a corpus metric they are the jackknife's pseudo-values.

        Raises:
            ArgumentError: the score is neither a mean of logged numbers nor a corpus metric that can be rebuilt.
        """
        return np.stack([_values(run, metric, filter_name) for run in self.runs])

    def of(self, seeds: Sequence[int | None]) -> Arm:
        """This arm with these seeds only, in this order."""
        places = [self.seeds.index(seed) for seed in seeds]
        return Arm(self.task, self.training, self.choice, tuple(seeds), tuple(self.runs[place] for place in places))

    def samples(self, filter_name: str) -> list[list[Sample]]:
        """The logged documents of each seed."""
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
    for _, cells in plan(study):
        for cell in cells:
            if read_cell(study, cell) is None:
                continue
            tasks[cell.task.name] = cell.task
            choice = _choice(cell)
            training = "" if cell.choice.is_base else _training(cell)
            seed = cell.training.settings.seed if cell.training else None
            found.setdefault((cell.task.name, training, choice), []).append((seed, _run(study, cell)))
    gathered = tuple(
        Arm(tasks[task], training, choice, tuple(seed for seed, _ in runs), tuple(run for _, run in runs))
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
    found = numbers(run.documents[filter_name].metrics.get(metric, [None]))
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
