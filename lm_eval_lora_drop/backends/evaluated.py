"""The test split under other variants beside the chosen one (`evaluate=`): answered, journaled, scored, compared.

Two moments. While the harness asks for the chosen variant's answers, `answer_together` gives them from one shared pass
of all variants, where that pass gives the harness's own. When the harness has all answers, `answer_others` answers what
the journal still lacks and scores every variant by the task's own filters and `process_results`. Nothing of the others
gets into the harness's answer cache, which knows no variants.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from tqdm import tqdm

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness.documents import Answer, Binding, Document
from lm_eval_lora_drop.harness.facts.scoring import answered_requests
from lm_eval_lora_drop.harness.fields import cluster_of
from lm_eval_lora_drop.harness.prompts import document_of
from lm_eval_lora_drop.judge.task import METRIC
from lm_eval_lora_drop.record.evaluated import (
    EvaluatedRecord,
    EvaluatedScoreRecord,
    EvaluatedVariantRecord,
    PairedRecord,
)
from lm_eval_lora_drop.record.journal import Journal
from lm_eval_lora_drop.record.metric import MetricSpec
from lm_eval_lora_drop.record.plain import plain
from lm_eval_lora_drop.statistics.aggregation import Aggregation
from lm_eval_lora_drop.statistics.clusters import Codes, cluster_codes
from lm_eval_lora_drop.statistics.paired import paired_test
from lm_eval_lora_drop.sweep.backend import Pass, Peers, Work
from lm_eval_lora_drop.sweep.run import in_step
from lm_eval_lora_drop.sweep.score import standard_error
from lm_eval_lora_drop.text import logger
from lm_eval_lora_drop.variant import AdapterShape, Variant

log = logger(__name__)

Prepare = Callable[[Sequence[Document], Sequence[Variant]], Pass]
"""The pass that answers documents under variants; all processes call it in step."""
Key = tuple[str, str]


@dataclass(frozen=True)
class _Scored:
    """One document: by variant what `process_results` gives, keyed by (metric, filter), and the responses."""

    doc_id: int
    cluster: str | None
    items: Mapping[Variant, Mapping[Key, Any]]
    outputs: Mapping[Variant, Any]


@dataclass
class EvaluatedSplit:
    """The test split of one task of one evaluation; `others` are answered beside `kept`.

    `asked_for`: the others were named (`evaluate=`), so a paid panel judges them too.
    """

    binding: Binding
    kept: Variant
    others: tuple[Variant, ...]
    journal: Journal
    peers: Peers
    asked_for: bool
    engine: str = "journal"
    problem: str | None = None
    """Why there is nothing to be said of the others, where that is an error."""
    _scored: list[_Scored] | None = None

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to be had of the others."""
        return self._scored is not None or self.problem is not None

    @property
    def _all(self) -> tuple[Variant, ...]:
        return self.kept, *self.others

    @property
    def _full(self) -> Variant | None:
        """What the others are compared with."""
        return next((one for one in (*self.others, self.kept) if one.is_full), None)

    def answer_together(
        self, requests: Sequence[Instance], prepare: Prepare, cache_hook: Any, *, quiet: bool
    ) -> list[Any] | None:
        """The chosen variant's answers to requests of one type, from one shared pass with the others; None where there
        is no such pass. For requests to which that pass gives the harness's own answers.

        Args:
            requests: of this task; some stand there twice (`repeats`, and where the harness pads).
            prepare: see `Prepare`.
            cache_hook: the harness's, which is told of the chosen variant's answers.
            quiet: no progress bar.
        """
        parts = [part for _, some in _documents(self.binding, requests) for part in some]
        answers = self._answers(parts, self._all, prepare, is_shared=True, quiet=quiet)
        if answers is None:
            return None
        found = {}
        for part in parts:
            for request, response in zip(part.requests, answers[str(self.kept), part.key], strict=True):
                cache_hook.add_partial(request.request_type, request.args, response)
                found[id(request)] = response
        return [found[id(request)] for request in requests]

    def answer_others(self, prepare: Prepare) -> None:
        """Answer what is lacking under the others, and score all variants; every process calls it in step.

        The harness has given the chosen variant's responses to the task's own instances by now. Whatever goes wrong
        costs these nothing: it is the `problem`.
        """

        def refuse(*_: Any) -> Pass:
            raise ArgumentError("with tensor parallelism the other processes have ended their part. Use one process")

        try:
            self._scored = self._answer_and_score(refuse if self.peers.has_silent_ones else prepare)
        except Exception as error:  # noqa: BLE001
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.problem = (
            f"{self._names} could not be evaluated on the test split ({type(error).__name__}: {error}). The results of "
            f"{self.kept.label} are complete; run the same command again to try once more."
        )
        log.error("%s: %s", self.binding.name, self.problem)

    @property
    def _names(self) -> str:
        return " and ".join("full" if one.is_full else one.label for one in self.others)

    def _answer_and_score(self, prepare: Prepare) -> list[_Scored]:
        documents = _documents(self.binding, self.binding.task.instances, cluster_of(self.binding.task))
        parts = [part for _, some in documents for part in some]
        answers: dict[Key, tuple[Any, ...]] = {}
        # A pass answers requests of one type.
        for kind in sorted(set().union(*in_step(self.peers, lambda: {_kind(part) for part in parts}))):
            some = [part for part in parts if _kind(part) == kind]
            found = self._answers(some, self.others, prepare, is_shared=not self.asked_for, quiet=False)
            if found is None:
                log.info(
                    "%s: %s would take a second run on the test split and is left out. To have it, add "
                    "evaluate=chosen+full to --model_args.",
                    self.binding.name,
                    self._names,
                )
                return []
            answers.update(found)
        scored = in_step(self.peers, lambda: self._score(documents, answers))
        return sorted((one for some in scored for one in some), key=lambda one: one.doc_id)

    def _answers(
        self,
        documents: Sequence[Document],
        variants: Sequence[Variant],
        prepare: Prepare,
        *,
        is_shared: bool,
        quiet: bool,
    ) -> dict[Key, tuple[Any, ...]] | None:
        """(variant, key of the document) -> responses, from the journal or anew; None where `is_shared` asks for a
        shared pass and there is none."""
        known: dict[Key, tuple[Any, ...]] = {}
        for found in in_step(self.peers, self.journal.read):
            known.update(found)
        lacking = {
            document.key: Work(document, missing)
            for document in documents
            if (missing := tuple(v for v in variants if _lacks(document, known.get((str(v), document.key)))))
        }
        if not any(in_step(self.peers, lambda: bool(lacking))):
            return known
        way = prepare(documents, variants)
        if is_shared and way.engine != "shared":
            return None
        self.engine = way.engine

        def answer() -> None:
            for batch in self._run(way, lacking, quiet=quiet or self.peers.rank != 0):
                known.update({(str(one.variant), one.document.key): one.responses for one in batch})

        in_step(self.peers, answer)
        return known

    def _run(self, way: Pass, lacking: Mapping[str, Work], *, quiet: bool) -> Iterator[Sequence[Answer]]:
        """Answers as they come, written down for good."""
        wanted = {(variant, work.document.key): work.document for work in lacking.values() for variant in work.variants}
        checked = [one for one in way.answers if wanted.get((one.variant, one.document.key)) is one.document]
        known = {(one.variant, one.document.key) for one in checked}
        work = [
            Work(one.document, missing)
            for one in lacking.values()
            if (missing := tuple(v for v in one.variants if (v, one.document.key) not in known))
        ]
        with tqdm(total=len(wanted), disable=quiet, desc=f"Test split under {len(self.others) + 1} variants") as bar:
            # Chained, not listed: each batch is written down before the next one is answered.
            for batch in chain([checked], way.runner(work) if work else ()):
                if batch:
                    self.journal.append(batch)
                    bar.update(len(batch))
                    yield batch

    def _score(
        self, documents: Sequence[tuple[int, list[Document]]], answers: Mapping[Key, tuple[Any, ...]]
    ) -> list[_Scored]:
        """By the task's own filters, which see the answers of all documents at once, and its `process_results`."""
        task = self.binding.task
        items: list[dict[Variant, dict[Key, Any]]] = [{} for _ in documents]
        outputs: list[dict[Variant, Any]] = [{} for _ in documents]

        def responses(variant: Variant, part: Document) -> tuple[Any, ...]:
            if variant != self.kept:
                return answers[str(variant), part.key]
            # An instance that pads a process was answered more often than it is asked.
            return tuple(one for request in part.requests[:: part.repeats] for one in request.resps[: part.repeats])

        for variant in self._all:
            instances = [
                [
                    one
                    for part in parts
                    for one in answered_requests(task, Answer(variant, part, responses(variant, part)))
                ]
                for _, parts in documents
            ]
            for some in instances:
                some.sort(key=lambda one: one.idx)
            for ensemble in task._filters:
                ensemble.apply([one for some in instances for one in some])
                for place, some in enumerate(instances):
                    filtered = [one.filtered_resps[ensemble.name] for one in some]
                    found = task.process_results(some[0].doc, filtered)
                    items[place].setdefault(variant, {}).update({(name, ensemble.name): v for name, v in found.items()})
            for place, some in enumerate(instances):
                outputs[place][variant] = [one.resps for one in some]
        return [
            _Scored(doc_id, parts[0].cluster, items[place], outputs[place])
            for place, (doc_id, parts) in enumerate(documents)
        ]

    def record(self, *, saves_samples: bool) -> EvaluatedRecord | None:
        """For the results file; None where the others were not answered. A panel is asked here."""
        try:
            return self._record(self._scored, saves_samples=saves_samples) if self._scored else None
        # As when they are answered.
        except Exception as error:  # noqa: BLE001
            self._fail(error)
            return None

    def _record(self, scored: Sequence[_Scored], *, saves_samples: bool) -> EvaluatedRecord:
        clusters = [one.cluster for one in scored]
        codes = cluster_codes(clusters) if any(clusters) else None
        judged = self._judged(scored)
        columns = {
            key: {v: [one.items[v].get(key) for one in scored] for v in self._all}
            for key in dict.fromkeys(key for variant in self._all for one in scored for key in one.items[variant])
            if key[0] != "bypass" and not key[0].startswith(METRIC)
        }
        rows, full = [], self._full
        for variant in self._all:
            scores = [
                _score_of(self.binding.task, key, column[variant], column[full] if full else None, codes)
                for key, column in {**columns, **judged}.items()
            ]
            outputs = tuple(one.outputs[variant] for one in scored) if saves_samples and variant != self.kept else ()
            rows.append(EvaluatedVariantRecord(variant=str(variant), scores=tuple(scores), outputs=outputs))
        indices = self.binding.doc_ids
        return EvaluatedRecord(
            doc_ids=tuple(one.doc_id if indices is None else indices[one.doc_id] for one in scored),
            rows=tuple(rows),
            engine=self.engine,
            clusters=tuple(clusters) if any(clusters) else None,
        )

    def _judged(self, scored: Sequence[_Scored]) -> dict[Key, dict[Variant, list[float | None]]]:
        """What the panel says of every variant, asked about all of them at once: one cap holds for the whole run."""
        judging = getattr(self.binding.task, "judging", None)
        variants = self._all
        filters = [name for metric, name in scored[0].items[self.kept] if metric == METRIC]
        if judging is None or not self.asked_for or not filters:
            return {}
        texts = [one.items[variant][METRIC, name] for name in filters for variant in variants for one in scored]
        try:
            found = judging.scores_of(texts)
        except ArgumentError as error:
            log.error("%s: no GPT-Score of %s: %s", self.binding.name, ", ".join(map(str, self.others)), error)
            return {}
        size = len(scored)
        return {
            (metric, name): {
                variant: values[start : start + size]
                for variant, start in zip(
                    variants, range(place * size * len(variants), len(values), size), strict=False
                )
            }
            for metric, values in found.items()
            for place, name in enumerate(filters)
        }


def variants_beside(kept: Variant, names: Sequence[str], shape: AdapterShape) -> tuple[Variant, ...]:
    """The variants that `names` (full, base) mean, without the chosen one. Of several adapters the first is the full
    one, as in a sweep."""
    found = []
    if "full" in names:
        found.append(Variant.full(kept.num_layers, next(iter(shape.adapters), "")))
    if "base" in names and not kept.is_base:
        found.append(Variant.base(kept.num_layers))
    return tuple(one for one in found if one != kept)


def _documents(
    binding: Binding, requests: Sequence[Instance], cluster: Callable[[Any], str | None] = lambda _: None
) -> list[tuple[int, list[Document]]]:
    """(doc_id, a document for each type of its requests), each request once, whatever stands there twice."""
    by_document: dict[int, dict[int, Instance]] = {}
    for request in requests:
        by_document.setdefault(request.doc_id, {})[id(request)] = request
    found = []
    for doc_id, some in by_document.items():
        kinds: dict[str, list[Instance]] = {}
        for request in sorted(some.values(), key=lambda one: one.idx):
            kinds.setdefault(request.request_type, []).append(request)
        doc = next(iter(some.values())).doc
        repeats = int(binding.task.config.repeats or 1)
        found.append((doc_id, [document_of(doc_id, doc, one, repeats, cluster(doc)) for one in kinds.values()]))
    return found


def _kind(document: Document) -> str:
    return document.requests[0].request_type


def _lacks(document: Document, responses: tuple[Any, ...] | None) -> bool:
    # A count that does not fit is no answer to these requests.
    return responses is None or len(responses) != len(document.requests)


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
