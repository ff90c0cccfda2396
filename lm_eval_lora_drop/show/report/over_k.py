"""How each document's output changes with K, where a folder holds runs of one adapter at several boundaries."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lm_eval_lora_drop.record.runs import Run, Sample, TaskRun
from lm_eval_lora_drop.show.report.family import first_metric
from lm_eval_lora_drop.show.report.outputs import marked
from lm_eval_lora_drop.show.report.systems import System, differences
from lm_eval_lora_drop.text import decimals_of_column, number, with_error

Change = Literal["gained", "lost", "changed", "same"]
"""Against the reference: scored better, worse, said something else with the same score, said the same."""


@dataclass(frozen=True)
class Step:
    """One position of the slider: the score at K on the whole task, and what became of its documents."""

    boundary: int
    score: str
    gained: int
    lost: int
    changed: int


@dataclass(frozen=True)
class Output:
    """What was said to a document at one K; `pieces` are `(differs from the reference, text)`."""

    change: Change
    score: str
    pieces: list[tuple[bool, str]]


@dataclass(frozen=True)
class DocumentOverK:
    """A document, its outputs in the order of the steps."""

    doc_id: int
    prompt: str
    target: str
    outputs: tuple[Output, ...]


@dataclass(frozen=True)
class OverK:
    """A task of one adapter at several K, held against the largest of them (`reference`)."""

    task: str
    adapter: str
    metric: str
    num_layers: int
    reference: int
    steps: tuple[Step, ...]
    documents: tuple[DocumentOverK, ...]
    total: int


def over_k(systems: Sequence[System], limit: int) -> list[OverK]:
    """For every adapter and task with logged outputs at two boundaries or more, what changes between them.

    Runs belong together where adapter, base model and dtype are the same by their digests, and documents, prompts,
    few-shot examples and task version are those of the run with the largest K; of several at one K the newest counts.
    The documents that change most often come first, up to `limit`; the steps count all.
    """
    found: dict[Hashable, dict[int, TaskRun]] = {}
    for run, task in _boundary_runs(systems):
        assert run.record is not None
        assert task.record is not None
        assert task.record.boundary is not None
        record = run.record
        group = (task.name, record.adapter.fingerprint, record.base.fingerprint, record.dtype)
        runs = found.setdefault(group, {})
        older = runs.get(task.record.boundary)
        if older is None or older.run.date < run.date:
            runs[task.record.boundary] = task
    shown = [_over_k(runs, limit) for runs in found.values() if len(runs) > 1]
    return [one for one in shown if one is not None]


def _boundary_runs(systems: Sequence[System]) -> Iterator[tuple[Run, TaskRun]]:
    for system in systems:
        for task in system.tasks.values():
            record = task.record
            if record is not None and record.boundary is not None and not record.kept.adapter and task.samples_path:
                yield task.run, task


def _over_k(runs: dict[int, TaskRun], limit: int) -> OverK | None:
    reference = max(runs)
    whole = runs[reference]
    key = first_metric(whole)
    if key is None:
        return None
    metric, filter_name = key
    alike = {k: run for k, run in sorted(runs.items()) if not differences(whole, run, filter_name)}
    samples = {k: run.samples(filter_name) for k, run in alike.items()}
    if len(samples) < 2 or not samples[reference]:
        return None
    better = whole.higher_is_better.get(metric)
    decimals = decimals_of_column((run.scores[key].value, run.scores[key].stderr) for run in alike.values())
    steps, changes = [], {}
    for k, run in alike.items():
        changes[k] = [_change(a, b, metric, better) for a, b in zip(samples[reference], samples[k], strict=True)]
        counts = [changes[k].count(kind) for kind in ("gained", "lost", "changed")]
        score = run.scores[key]
        steps.append(Step(k, with_error(score.value, score.stderr, decimals), *counts))
    places = sorted(
        range(len(samples[reference])),
        key=lambda place: (
            -sum(of[place] in ("gained", "lost") for of in changes.values()),
            -sum(of[place] == "changed" for of in changes.values()),
            samples[reference][place].doc_id,
        ),
    )
    documents = []
    for place in places[:limit]:
        first = samples[reference][place]
        outputs = tuple(
            Output(
                changes[k][place],
                _score(samples[k][place], metric),
                # The reference itself has nothing that is marked.
                marked(first.raw, samples[k][place].raw)[1],
            )
            for k in alike
        )
        documents.append(DocumentOverK(first.doc_id, first.prompt, first.target, outputs))
    assert whole.record is not None
    return OverK(
        task=whole.name,
        adapter=whole.run.system.split(" ")[0],
        metric=metric if filter_name == "none" else f"{metric},{filter_name}",
        num_layers=whole.record.num_layers,
        reference=reference,
        steps=tuple(steps),
        documents=tuple(documents),
        total=len(places),
    )


def _change(reference: Sample, other: Sample, metric: str, higher_is_better: bool | None) -> Change:
    before, after = reference.metrics.get(metric), other.metrics.get(metric)
    # A corpus metric logs what it sums up, not a score of the document; and without a direction nothing is a gain.
    if isinstance(before, int | float) and isinstance(after, int | float) and after != before:  # noqa: SIM102
        if higher_is_better is not None:
            return "gained" if (after > before) == higher_is_better else "lost"
    return "same" if other.raw == reference.raw else "changed"


def _score(sample: Sample, metric: str) -> str:
    value = sample.metrics.get(metric)
    if not isinstance(value, int | float):
        return ""
    value = float(value)
    return number(value, 0) if value.is_integer() else number(value, decimals_of_column([(value, None)]))
