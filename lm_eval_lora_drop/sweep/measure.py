"""Scores the candidates of one task on validation documents, and on other tasks where they were named; chooses nothing.

Backend-free: what it needs of a model is `work.Backend`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lm_eval_lora_drop.harness.documents import Binding, Document
from lm_eval_lora_drop.options import LoraDropArgs
from lm_eval_lora_drop.record.events import Broadcast
from lm_eval_lora_drop.record.fingerprint import digest
from lm_eval_lora_drop.record.journal import Journal
from lm_eval_lora_drop.record.metric import MetricSpec
from lm_eval_lora_drop.record.schema import AlsoRecord, SweepRecord
from lm_eval_lora_drop.sweep import documents as validation
from lm_eval_lora_drop.sweep.backend import Backend
from lm_eval_lora_drop.sweep.candidates import SEARCHED, best_layers, candidates_of
from lm_eval_lora_drop.sweep.documents.drawing import ValidationSet
from lm_eval_lora_drop.sweep.documents.reference_likelihood import ReferenceLoglikelihood, reference_documents
from lm_eval_lora_drop.sweep.run import SweepSettings, clusters_of, run_sweep
from lm_eval_lora_drop.sweep.score import Scorer
from lm_eval_lora_drop.sweep.select import selection
from lm_eval_lora_drop.sweep.strategies.cma import run_cma
from lm_eval_lora_drop.sweep.strategies.greedy import run_greedy
from lm_eval_lora_drop.sweep.tradeoffs.also import AlsoTask, open_also, score_also
from lm_eval_lora_drop.sweep.tradeoffs.bounds import (
    BoundedCriterion,
    ScoredCandidates,
    choose_within,
    parse_bounded,
)
from lm_eval_lora_drop.text import logger
from lm_eval_lora_drop.variant import Variant

log = logger(__name__)


@dataclass(frozen=True)
class SearchInput:
    """What a search for the task `binding` reads: documents of `source` (the task itself, or `sweep_task`), scored by
    `metric` (None: by their references' likelihood). `fingerprint` identifies the search."""

    binding: Binding
    source: Binding
    metric: MetricSpec | None
    drawn: ValidationSet
    fingerprint: str

    def documents(self) -> tuple[Document, ...]:
        """Those that are scored, with the requests that the metric needs."""
        documents = self.drawn.documents
        if self.metric is not None:
            return documents
        return reference_documents(documents, validation.references(self.source, documents))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A task's candidates with their scores, before one is taken; `sweep` has the one that its own rule takes."""

    given: SearchInput
    documents: tuple[Document, ...]
    scorer: Scorer
    sweep: SweepRecord
    parameters: dict[str, int]
    others: tuple[AlsoTask, ...]
    also: tuple[AlsoRecord, ...]
    journal: Path
    seconds: float = 0.0

    @property
    def judged(self) -> ScoredCandidates:
        """The candidates on the task itself."""
        return ScoredCandidates(self.sweep.candidates, self.scorer, clusters_of(self.documents))


@dataclass(frozen=True)
class Measurer:
    """Measures task by task; `folder` is where journals go."""

    backend: Backend
    args: LoraDropArgs
    folder: Path
    listeners: Broadcast = field(default_factory=Broadcast)

    def measure(self, given: SearchInput) -> Measured:
        """Score the candidates."""
        args, backend, documents = self.args, self.backend, given.documents()
        start = time.perf_counter()
        binding, source, drawn, metric = given.binding, given.source, given.drawn, given.metric
        scorer = ReferenceLoglikelihood(backend, documents) if metric is None else Scorer(source.task, metric)
        candidates = candidates_of(args, backend.shape)
        if "scores" in args.sweep_candidates.names:
            candidates = best_layers(backend.layer_scores(validation.pairs(source, drawn.documents)), candidates)
        select = selection(args.sweep_select, args.sweep_strategy, ordered=candidates.ordered)
        settings = SweepSettings(
            candidates=candidates,
            strategy=args.sweep_strategy,
            # Bounds are judged when everything is scored, on the other tasks too.
            select="best" if parse_bounded(select) else select,
            seed=args.sweep_seed,
        )
        journal = self.journal(binding, source)
        # An error in another task is raised before hours of sweeping this one.
        others = open_also(args.sweep_also, binding, args.sweep_limit, args.sweep_seed) if args.sweep_also else []
        prepare = functools.cache(lambda: backend.prepare(documents, settings.candidates.variants))
        log.info(
            "%s: sweep over %d candidates (%s) on %d documents of split %r by %s, journal %s",
            binding.name,
            len(settings.candidates.variants),
            settings.candidates.name,
            len(documents),
            drawn.split,
            scorer.metric.name,
            journal.path,
        )

        def sweep_on(some: Sequence[Document], how: SweepSettings) -> SweepRecord:
            return run_sweep(some, prepare, scorer, how, journal, peers=backend.peers(), listeners=self.listeners)

        if candidates.name in SEARCHED:
            search = run_greedy
            if candidates.name == "cma_es":
                search = functools.partial(run_cma, peers=backend.peers(), budget=args.sweep_size)
            sweep, compared = search(documents, sweep_on, scorer, settings)
            documents = tuple(compared)
        else:
            sweep = sweep_on(documents, settings)
        took = journal.seconds_per_pair({document.key for document in documents})
        if took is not None:
            sweep = replace(sweep, seconds_per_pair=round(took / backend.peers().world_size, 6))
        measured = Measured(
            given=given,
            documents=documents,
            scorer=scorer,
            sweep=sweep,
            parameters={
                row.variant: backend.count_parameters(Variant.parse(row.variant, backend.shape.num_layers))[0]
                for row in sweep.candidates
            },
            others=tuple(others),
            also=tuple(
                score_also(one, sweep, backend, self.journal(one.binding, one.binding), self.listeners)
                for one in others
            ),
            journal=journal.path,
        )
        return replace(measured, seconds=round(time.perf_counter() - start, 3))

    def bounded(self, measured: Measured) -> SweepRecord:
        """The sweep with the choice by the bounds of `sweep_select`, if it has any."""
        rule, sweep, others = parse_bounded(self.args.sweep_select or ""), measured.sweep, measured.others
        if rule is None:
            return sweep
        rule = rule.named({spec.task: one.binding.name for spec, one in zip(self.args.sweep_also, others, strict=True)})
        judged = {
            one.task: ScoredCandidates(
                one.candidates, Scorer(other.binding.task, other.metric), clusters_of(other.drawn.documents)
            )
            for one, other in zip(measured.also, others, strict=True)
        }
        within = BoundedCriterion.of(
            rule,
            sweep,
            measured.also,
            measured.parameters,
            self.backend.shape.num_layers,
            sign=measured.scorer.metric.sign,
            clusters=measured.judged.clusters,
        )
        return choose_within(sweep, rule, measured.judged, judged, within)

    def journal(self, binding: Binding, source: Binding, of: str = "") -> Journal:
        """Where answers to the documents of `source` stand; `binding` is the task they are asked for. `of` ends the
        name of a journal of other documents than a sweep's."""
        return Journal(
            self.folder,
            self.task_fingerprint(source),
            binding.name + of,
            rank=self.backend.peers().rank,
            settings={
                **self.backend.fingerprint_parts(),
                "task": source.name,
                "version": str(source.task.VERSION),
            },
        )

    def task_fingerprint(self, binding: Binding) -> str:
        """What identifies answers to this task's prompts: model, adapter and dtype, task name and version."""
        return digest(self.backend.fingerprint_parts(), binding.name, binding.task.VERSION)
