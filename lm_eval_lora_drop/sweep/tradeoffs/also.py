"""Other tasks that a sweep's candidates are scored on, and that choose nothing: forgetting, format, another language.

Their documents are drawn by the same rules as those of the optimised task: from validation or training splits, never
from what is evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness.documents import Binding
from lm_eval_lora_drop.harness.prompts import shown_text
from lm_eval_lora_drop.harness.task_index import task_manager
from lm_eval_lora_drop.options import AlsoSpec
from lm_eval_lora_drop.record.events import Broadcast
from lm_eval_lora_drop.record.journal import Journal
from lm_eval_lora_drop.record.metric import MetricSpec
from lm_eval_lora_drop.record.schema import AlsoRecord, SweepRecord
from lm_eval_lora_drop.sweep.backend import Backend
from lm_eval_lora_drop.sweep.candidates import CandidateSet
from lm_eval_lora_drop.sweep.documents import draw, drawn_documents
from lm_eval_lora_drop.sweep.documents.drawing import ValidationSet
from lm_eval_lora_drop.sweep.documents.similarity import normalise
from lm_eval_lora_drop.sweep.metric import resolve_metric
from lm_eval_lora_drop.sweep.run import SweepSettings, run_sweep
from lm_eval_lora_drop.sweep.score import Scorer
from lm_eval_lora_drop.text import did_you_mean
from lm_eval_lora_drop.variant import Variant

LONG = 40
"""Characters from which on a field tells one document from all others."""
_YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class AlsoTask:
    """A task to be scored, with what it is scored by and the documents it is scored on."""

    binding: Binding
    metric: MetricSpec
    drawn: ValidationSet


def check_also(specs: Sequence[AlsoSpec]) -> None:
    """Refuse tasks that lm-eval does not know, before a model is loaded.

    Raises:
        ArgumentError: no such task, or no such file.
    """
    files = [spec.task for spec in specs if spec.task.endswith(_YAML)]
    for file in files:
        if not Path(file).expanduser().is_file():
            raise ArgumentError(f"sweep_also={file}: there is no such file. Give a task's name or its YAML file.")
    if names := [spec.task for spec in specs if spec.task not in files]:
        known = task_manager(names).all_subtasks
        for name in names:
            if name not in known:
                raise ArgumentError(
                    f"sweep_also must name tasks that lm-eval knows (no groups), got {name!r}."
                    + did_you_mean(name, known)
                    + " A task of your own can be named by its YAML file."
                )


def open_also(specs: Sequence[AlsoSpec], binding: Binding, limit: int, seed: int) -> list[AlsoTask]:
    """The tasks, asked like the one of `binding` (chat template, system instruction), up to `limit` documents each.

    Raises:
        ArgumentError: a task that is the optimised one, has no documents besides the evaluated ones, has no such
            metric, or would read documents that `binding` evaluates.
    """
    found: list[AlsoTask] = []
    for spec in specs:
        metadata = dict(binding.task.config.metadata or {})
        metadata.pop("version", None)
        manager = task_manager([] if spec.task.endswith(_YAML) else [spec.task], metadata=metadata)
        loaded = manager.load([spec.task])["tasks"]
        if len(loaded) != 1:
            raise ArgumentError(f"sweep_also={spec.task} must be one task, got {len(loaded)}. Name them one by one.")
        (task,) = loaded.values()
        name = str(task.config.task)
        if name == binding.name:
            raise ArgumentError(
                f"sweep_also={spec.task} is the task that the sweep optimises. Name other tasks, or leave it out."
            )
        task.set_fewshot_seed(1234)
        mine = Binding(task, binding.prompt_arguments)
        metric = resolve_metric(task, spec.metric)
        drawn = draw(mine, limit, seed)
        if drawn is None:
            raise ArgumentError(
                f"sweep_also={spec.task} has no validation or training documents besides the evaluated ones, and "
                "candidates are never compared on those. Name a task that has."
            )
        _refuse_evaluated(mine, drawn, binding)
        found.append(AlsoTask(mine, metric, drawn))
    return found


def score_also(
    other: AlsoTask, sweep: SweepRecord, backend: Backend, journal: Journal, listeners: Broadcast | None = None
) -> AlsoRecord:
    """Score a sweep's candidates, those that were carried to the end, on another task."""
    documents = other.drawn.documents
    left = [row.variant for row in sweep.candidates if row.eliminated_after is None]
    variants = tuple(Variant.parse(one, backend.shape.num_layers) for one in left)
    found = run_sweep(
        documents,
        lambda: backend.prepare(documents, variants),
        Scorer(other.binding.task, other.metric),
        SweepSettings(candidates=CandidateSet(sweep.candidate_set, variants, ordered=False)),
        journal,
        peers=backend.peers(),
        listeners=listeners,
    )
    return AlsoRecord(
        task=other.binding.name,
        metric=other.metric,
        aggregation=found.aggregation,
        validation=drawn_documents(other.binding, other.binding, other.drawn, documents),
        candidates=found.candidates,
        journal=str(journal.path),
    )


def _refuse_evaluated(also: Binding, drawn: ValidationSet, binding: Binding) -> None:
    """A task may be another view of the same data, whose training split is what is evaluated here.

    Two documents are the same where their prompts are (case, white space and punctuation aside; choices do not count,
    since one view may have some and the other none), or where one's long fields are all among the other's.
    """
    prompts = {_prompt(binding.task, doc) for doc in binding.task.eval_docs}
    fields = [found for doc in binding.task.eval_docs if (found := _long_fields(doc))]
    holding: dict[str, list[int]] = {}
    for place, values in enumerate(fields):
        for value in values:
            holding.setdefault(value, []).append(place)

    def is_evaluated(doc: Any) -> bool:
        if _prompt(also.task, doc) in prompts:
            return True
        mine = _long_fields(doc)
        return any(fields[place] <= mine for value in mine for place in holding.get(value, ()))

    same = [document.doc_id for document in drawn.documents if is_evaluated(document.doc)]
    if same:
        raise ArgumentError(
            f"sweep_also={also.name} would read {len(same)} documents that {binding.name} evaluates (the first: "
            f"{same[0]} of split {drawn.split!r}). Name a task on other documents."
        )


def _prompt(task: Any, doc: Any) -> str:
    text = task.doc_to_text(doc)
    return normalise(text) if isinstance(text, str) and text.strip() else normalise(shown_text(task, doc))


def _long_fields(doc: Any) -> frozenset[str]:
    values = doc.values() if isinstance(doc, Mapping) else ()
    return frozenset(normalise(value) for value in values if isinstance(value, str) and len(value) >= LONG)
