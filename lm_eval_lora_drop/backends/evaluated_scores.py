"""Scores of the test split under several variants, by the task's own filters, `process_results` and aggregation, each
beside its paired difference to the full adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.metrics import mean

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness.documents import Answer, Binding, Document
from lm_eval_lora_drop.harness.facts.scoring import answered_requests
from lm_eval_lora_drop.judge.task import METRIC
from lm_eval_lora_drop.record.evaluated import (
    EvaluatedRecord,
    EvaluatedScoreRecord,
    EvaluatedVariantRecord,
    PairedRecord,
)
from lm_eval_lora_drop.record.metric import MetricSpec
from lm_eval_lora_drop.record.plain import plain
from lm_eval_lora_drop.statistics.aggregation import Aggregation
from lm_eval_lora_drop.statistics.clusters import Codes, cluster_codes
from lm_eval_lora_drop.statistics.paired import paired_test
from lm_eval_lora_drop.sweep.score import standard_error
from lm_eval_lora_drop.text import logger
from lm_eval_lora_drop.variant import Variant

log = logger(__name__)

Key = tuple[str, str]
"""Two names: of a variant and a document, or of a metric and a filter."""


@dataclass(frozen=True)
class ScoredDocument:
    """One document: by variant what `process_results` gives, keyed by (metric, filter), and the responses."""

    doc_id: int
    cluster: str | None
    items: Mapping[Variant, Mapping[Key, Any]]
    outputs: Mapping[Variant, Any]


def score_documents(
    task: Any,
    kept: Variant,
    others: Sequence[Variant],
    documents: Sequence[tuple[int, list[Document]]],
    answers: Mapping[Key, tuple[Any, ...]],
) -> list[ScoredDocument]:
    """Every document under every variant; the task's filters see the answers of all documents at once.

    Args:
        task: the lm-eval task.
        kept: the variant whose responses the harness has put into the task's own requests.
        others: the variants whose responses are in `answers`.
        documents: (doc_id, a document for each type of its requests).
        answers: (variant, key of the document) -> responses.
    """
    items: list[dict[Variant, dict[Key, Any]]] = [{} for _ in documents]
    outputs: list[dict[Variant, Any]] = [{} for _ in documents]

    def responses(variant: Variant, part: Document) -> tuple[Any, ...]:
        if variant != kept:
            return answers[str(variant), part.key]
        # An instance that pads a process was answered more often than it is asked.
        return tuple(one for request in part.requests[:: part.repeats] for one in request.resps[: part.repeats])

    for variant in (kept, *others):
        instances = [
            sorted(
                (
                    one
                    for part in parts
                    for one in answered_requests(task, Answer(variant, part, responses(variant, part)))
                ),
                key=lambda one: one.idx,
            )
            for _, parts in documents
        ]
        for ensemble in task._filters:
            ensemble.apply([one for some in instances for one in some])
            for place, some in enumerate(instances):
                found = task.process_results(some[0].doc, [one.filtered_resps[ensemble.name] for one in some])
                items[place].setdefault(variant, {}).update({(name, ensemble.name): v for name, v in found.items()})
        for place, some in enumerate(instances):
            outputs[place][variant] = [one.resps for one in some]
    return [
        ScoredDocument(doc_id, parts[0].cluster, items[place], outputs[place])
        for place, (doc_id, parts) in enumerate(documents)
    ]


def evaluated_record(
    binding: Binding,
    variants: Sequence[Variant],
    scored: Sequence[ScoredDocument],
    *,
    engine: str,
    judges: bool,
    saves_samples: bool,
) -> EvaluatedRecord:
    """For the results file, the chosen variant first.

    Args:
        binding: the evaluated task.
        variants: the chosen one, then the others.
        scored: all documents.
        engine: what answered the others.
        judges: whether a panel, which is paid, judges all variants.
        saves_samples: whether the others' outputs are written down too.
    """
    task = binding.task
    clusters = [one.cluster for one in scored]
    codes = cluster_codes(clusters) if any(clusters) else None
    full = next((one for one in reversed(variants) if one.is_full), None)
    columns = {
        key: {v: [one.items[v].get(key) for one in scored] for v in variants}
        for key in dict.fromkeys(key for variant in variants for one in scored for key in one.items[variant])
        if key[0] != "bypass" and not key[0].startswith(METRIC)
    }
    if judges:
        columns |= _judged(task, variants, scored)
    rows = []
    for place, variant in enumerate(variants):
        scores = [
            _score_of(task, key, column[variant], column[full] if full else None, codes)
            for key, column in columns.items()
        ]
        outputs = tuple(one.outputs[variant] for one in scored) if saves_samples and place else ()
        rows.append(EvaluatedVariantRecord(variant=str(variant), scores=tuple(scores), outputs=outputs))
    indices = binding.doc_ids
    return EvaluatedRecord(
        doc_ids=tuple(one.doc_id if indices is None else indices[one.doc_id] for one in scored),
        rows=tuple(rows),
        engine=engine,
        clusters=tuple(clusters) if any(clusters) else None,
    )


def _judged(
    task: Any, variants: Sequence[Variant], scored: Sequence[ScoredDocument]
) -> dict[Key, dict[Variant, list[float | None]]]:
    """The panel's scores of every variant, asked for all of them at once: one cap holds for the whole run."""
    judging = getattr(task, "judging", None)
    filters = [name for metric, name in scored[0].items[variants[0]] if metric == METRIC]
    if judging is None or not filters:
        return {}
    texts = [one.items[variant][METRIC, name] for name in filters for variant in variants for one in scored]
    try:
        found = judging.scores_of(texts)
    except ArgumentError as error:
        log.error("%s: no GPT-Score of %s: %s", task.config.task, ", ".join(map(str, variants[1:])), error)
        return {}
    size = len(scored)
    places = [(name, variant) for name in filters for variant in variants]
    columns: dict[Key, dict[Variant, list[float | None]]] = {}
    for metric, values in found.items():
        for start, (name, variant) in enumerate(places):
            columns.setdefault((metric, name), {})[variant] = values[start * size : (start + 1) * size]
    return columns


def _score_of(
    task: Any, key: Key, items: Sequence[Any], full: Sequence[Any] | None, codes: Codes | None
) -> EvaluatedScoreRecord:
    """As the harness aggregates (`_compute_task_aggregations`, lm-eval 0.4.13): over the values there are; what a panel
    has judged is averaged. `full` are the full adapter's items."""
    name, filter_name = key
    direction = task.higher_is_better().get(name)
    # A panel's own aggregation would ask it.
    aggregation = Aggregation(mean if name.startswith(METRIC) else task.aggregation().get(name, mean))
    metric = MetricSpec(name, filter_name, direction is not False)
    try:
        score, stderr = aggregation.score(items), standard_error(aggregation, items)
        compared = None
        if full is not None and full is not items and isinstance(direction, bool):
            compared = _compared(aggregation, items, full, codes, sign=1 if direction else -1)
        return EvaluatedScoreRecord(
            metric=metric,
            score=plain(float(score)),
            stderr=plain(float(stderr)),
            items=_written(items),
            to_full=compared,
        )
    # A function of the task's own may raise anything, and the results of the chosen variant must be written.
    except Exception as error:  # noqa: BLE001
        log.warning("%s: %s cannot be aggregated (%r)", task.task_name, name, error)
        return EvaluatedScoreRecord(metric=metric, score=None, stderr=None)


def _compared(
    aggregation: Aggregation, items: Sequence[Any], full: Sequence[Any], codes: Codes | None, *, sign: int
) -> PairedRecord | None:
    found = paired_test(aggregation, items, full, clusters=codes)
    if found is None:
        return None
    low, high = sorted(sign * end for end in found.interval)
    return PairedRecord(
        difference=sign * found.difference, low=low, high=high, p_value=found.p_value, documents=found.compared
    )


def _written(items: Sequence[Any]) -> tuple[Any, ...]:
    """What JSON holds of items; nothing where it cannot hold one of them."""
    found = tuple(plain(list(items)))
    try:
        json.dumps(found, allow_nan=False)
    except (TypeError, ValueError):
        return ()
    return found
