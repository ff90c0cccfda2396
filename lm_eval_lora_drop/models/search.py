"""Finds what of the adapter a task is answered with, on validation documents, or says why the default is taken.

Backend-free: what it needs of a model is `work.Backend`.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lm_eval_lora_drop import validation
from lm_eval_lora_drop.models.args import LoraDropArgs
from lm_eval_lora_drop.probe.reference import REFERENCE_LOGLIKELIHOOD, ReferenceLoglikelihood, reference_documents
from lm_eval_lora_drop.record.choice import recorded_choice
from lm_eval_lora_drop.record.events import Broadcast, Decided
from lm_eval_lora_drop.record.fingerprint import digest
from lm_eval_lora_drop.record.journal import Journal
from lm_eval_lora_drop.record.schema import AlsoRecord, Method, SweepRecord, TaskRecord
from lm_eval_lora_drop.sweeping import prior
from lm_eval_lora_drop.sweeping.beyond.also import Also, open_also
from lm_eval_lora_drop.sweeping.beyond.greedy import run_greedy
from lm_eval_lora_drop.sweeping.families import GREEDY, Family, best_layers
from lm_eval_lora_drop.sweeping.metric import resolve_metric
from lm_eval_lora_drop.sweeping.run import SweepSettings, run_sweep
from lm_eval_lora_drop.sweeping.score import Scorer
from lm_eval_lora_drop.sweeping.select import selection
from lm_eval_lora_drop.variant import Variant, default_boundary
from lm_eval_lora_drop.verdict.dry_run import plan_of_sweep
from lm_eval_lora_drop.work import Answer, Backend, Binding, Document, MetricSpec, Pass, ValidationSet, Work

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Search:
    """Decides task by task.

    `folder` is where journals go; `recall` gives the record that an answer cache holds under a fingerprint.
    """

    backend: Backend
    args: LoraDropArgs
    folder: Path
    listeners: Broadcast = field(default_factory=Broadcast)
    recall: Callable[[str], TaskRecord | None] = lambda _: None

    def decide(self, binding: Binding) -> TaskRecord:
        """The record of one task: as given, by a sweep or the probe, or the default where there are no documents.

        Raises:
            ArgumentError: the task has no such metric, or the backend cannot do what was asked for.
        """
        start = time.perf_counter()
        fixed = self.args.spec.resolve(self.backend.shape.num_layers)
        if fixed is not None:
            method: Method = "default" if self.args.spec.kind == "default" else "given"
            record = self._record(fixed, method, self._task_fingerprint(binding))
        elif self.args.spec.kind == "recorded":
            assert self.args.spec.source is not None
            choice = recorded_choice(self.args.spec.source, binding.name, self.backend.fingerprint_parts())
            record = self._record(choice.variant, "recorded", self._task_fingerprint(binding), source=str(choice.path))
        else:
            record = self._find(binding)
            if not record.from_answer_cache:
                record = replace(record, seconds=round(time.perf_counter() - start, 3))
        for warning in record.warnings:
            log.warning("%s: %s", binding.name, warning)
        self.listeners.tell(Decided(binding.name, record))
        return record

    def _find(self, binding: Binding) -> TaskRecord:
        found = self._draw(binding)
        if found is None:
            return self._default(binding)
        source, metric, drawn = found
        if drawn.left_out:
            shown = "; ".join(map(str, drawn.left_out[:3])) + ("; ..." if len(drawn.left_out) > 3 else "")
            log.info("%s: left out %d drawn documents: %s", binding.name, len(drawn.left_out), shown)
        of_source = () if source is binding else (self._task_fingerprint(source),)
        fingerprint = digest(self._task_fingerprint(binding), *of_source, drawn.fingerprint)
        recalled = self.recall(fingerprint)
        if recalled is not None:
            log.info("%s: %s as recorded in the answer cache", binding.name, recalled.kept.label)
            return recalled
        if self.args.spec.kind == "probe":
            return self._probe(binding, source, drawn, fingerprint)
        return self._sweep(binding, source, drawn, fingerprint, metric)

    def _draw(self, binding: Binding) -> tuple[Binding, MetricSpec | None, ValidationSet] | None:
        """The task whose documents are searched on, its metric (None: the references' likelihood), the documents."""
        for source in self._sources(binding):
            metric = None
            if self.args.spec.kind == "auto" and self.args.sweep_metric != REFERENCE_LOGLIKELIHOOD:
                metric = resolve_metric(source.task, self.args.sweep_metric)
            drawn = validation.draw(
                source,
                self.args.sweep_limit,
                self.args.sweep_seed,
                evaluated_task=None if source is binding else binding.task,
            )
            if drawn is not None:
                return source, metric, drawn
        return None

    def _sources(self, binding: Binding) -> Iterator[Binding]:
        """The tasks whose documents may be searched on: its own first, then `sweep_task`."""
        if self.args.sweep_task is None or validation.draws_from(binding.task) is not None:
            yield binding
        if self.args.sweep_task is not None:
            yield validation.other_task(self.args.sweep_task, binding)

    def _sweep(
        self, binding: Binding, source: Binding, drawn: ValidationSet, fingerprint: str, metric: MetricSpec | None
    ) -> TaskRecord:
        """Compare the candidates on the documents drawn from `source`, by `metric`; where it is None, by their
        references' likelihood."""
        args, backend, documents = self.args, self.backend, drawn.documents
        scorer: Any  # a Scorer, or what stands in for one where nothing is generated
        if metric is None:
            documents = reference_documents(documents, validation.references(source, documents))
            scorer = ReferenceLoglikelihood(backend, documents)
        else:
            scorer = Scorer(source.task, metric)
        family = args.candidates(backend.shape)
        if "scores" in args.sweep_family:
            family = best_layers(backend.layer_scores(validation.pairs(source, drawn.documents)), family)
        settings = SweepSettings(
            family=family,
            strategy=args.sweep_strategy,
            select=selection(args.sweep_select, args.sweep_strategy, ordered=family.ordered),
            seed=args.sweep_seed,
        )
        journal = self._journal(binding, source)
        # Whatever is wrong with another task is said before hours of sweeping this one.
        others = open_also(args.sweep_also, binding, args.sweep_limit, args.sweep_seed) if args.sweep_also else []
        prepare = functools.cache(lambda: backend.prepare(documents, settings.family.variants))
        log.info(
            "%s: sweep over %d candidates (%s) on %d documents of split %r by %s, journal %s",
            binding.name,
            len(settings.family.variants),
            settings.family.name,
            len(documents),
            drawn.split,
            scorer.metric.name,
            journal.path,
        )

        def sweep_on(
            some: Sequence[Document], how: SweepSettings, reference: Mapping[Variant, Sequence[float]] | None = None
        ) -> SweepRecord:
            peers, told = backend.peers(), self.listeners
            return run_sweep(some, prepare, scorer, how, journal, peers=peers, listeners=told, reference=reference)

        if family.name in GREEDY:
            sweep, compared = run_greedy(documents, sweep_on, scorer, settings)
            documents = tuple(compared)
        else:
            sweep = sweep_on(documents, settings, self._prior(source, documents, prepare, settings, journal))
        return self._record(
            Variant.parse(sweep.chosen, backend.shape.num_layers),
            "sweep",
            fingerprint,
            metric=scorer.metric,
            validation=validation.drawn_documents(binding, source, drawn, documents),
            sweep=sweep,
            candidate_parameters={
                row.variant: backend.count_parameters(Variant.parse(row.variant, backend.shape.num_layers))[0]
                for row in sweep.candidates
            },
            also=tuple(self._also(other, sweep) for other in others),
            journal=str(journal.path),
            warnings=(
                *_of_another(binding, source),
                *drawn.warnings,
                *self._thinking(documents),
                *(sweep.check or {}).get("warnings", ()),
            ),
        )

    def dry_run(self, binding: Binding) -> str:
        """What the sweep of one task would take, in text; nothing is answered.

        Raises:
            ArgumentError: as `decide`.
        """
        found = self._draw(binding)
        if found is None:
            return f"{binding.name}: no document to sweep on, the default boundary would be taken."
        source, metric, drawn = found
        documents = drawn.documents
        if metric is None:
            documents = reference_documents(documents, validation.references(source, documents))
        candidates = self.args.candidates(self.backend.shape).variants
        journal = self._journal(binding, source)
        known = journal.read()
        return plan_of_sweep(
            binding.name,
            REFERENCE_LOGLIKELIHOOD if metric is None else str(metric),
            documents=len(documents),
            split=drawn.split,
            candidates=len(candidates),
            known=sum((str(variant), document.key) in known for document in documents for variant in candidates),
            racing=self.args.sweep_strategy == "racing",
            seconds_per_pair=journal.seconds_per_pair({document.key for document in documents}),
            processes=self.backend.peers().world_size,
            memory=self.backend.memory(documents, candidates),
        )

    def _journal(self, binding: Binding, source: Binding) -> Journal:
        return Journal(
            self.folder,
            self._task_fingerprint(source),
            binding.name,
            rank=self.backend.peers().rank,
            settings={
                **self.backend.fingerprint_parts(),
                "task": source.name,
                "version": str(source.task.VERSION),
            },
        )

    def _also(self, other: Also, sweep: SweepRecord) -> AlsoRecord:
        """Score a sweep's candidates, those that were carried to the end, on another task."""
        backend, documents = self.backend, other.drawn.documents
        left = [row.variant for row in sweep.candidates if row.retired_after is None]
        family = Family(
            sweep.family, tuple(Variant.parse(one, backend.shape.num_layers) for one in left), ordered=False
        )
        journal = self._journal(other.binding, other.binding)
        found = run_sweep(
            documents,
            lambda: backend.prepare(documents, family.variants),
            Scorer(other.binding.task, other.metric),
            SweepSettings(family=family),
            journal,
            peers=backend.peers(),
            listeners=self.listeners,
        )
        return AlsoRecord(
            task=other.binding.name,
            metric=other.metric,
            aggregation=found.aggregation,
            validation=validation.drawn_documents(other.binding, other.binding, other.drawn, documents),
            candidates=found.candidates,
            journal=str(journal.path),
        )

    def _prior(
        self,
        binding: Binding,
        documents: Sequence[Document],
        prepare: Callable[[], Pass],
        settings: SweepSettings,
        journal: Journal,
    ) -> dict[Variant, list[float]] | None:
        """The references' log-likelihood per token under some candidates, for racing to retire what is hopeless.

        Only where it costs one pass and saves generating: with the shared pass, for boundaries of a task that
        generates. It reads the first `prior.DOCUMENTS` (they come in random order), every process all of them, so that
        all retire the same candidates. Its answers are journaled like those of the sweep.
        """
        documents = documents[: prior.DOCUMENTS]
        generates = documents[0].requests[0].request_type == "generate_until"
        if settings.strategy != "racing" or settings.family.name != "boundary" or not generates:
            return None
        references = validation.references(binding, documents)
        if not all(reference.strip() for reference in references):
            return None
        asked = reference_documents(documents, references)
        scorer = ReferenceLoglikelihood(self.backend, asked)
        variants = tuple(prior.read_at(settings.family.variants))
        known = journal.read()
        found: dict[tuple[Variant, str], float | None] = {
            (variant, document.key): scorer.item(Answer(variant, document, known[str(variant), document.key]))
            for variant in variants
            for document in asked
            if (str(variant), document.key) in known
        }
        lacking = [
            Work(document, missing)
            for document in asked
            if (missing := tuple(variant for variant in variants if (variant, document.key) not in found))
        ]
        if lacking and prepare().engine != "shared":
            return None
        for answers in prepare().runner(lacking) if lacking else ():
            journal.append(answers)
            found.update({(answer.variant, answer.document.key): scorer.item(answer) for answer in answers})
        nan = float("nan")
        return {
            variant: [nan if (item := found[variant, document.key]) is None else item for document in asked]
            for variant in variants
        }

    def _thinking(self, documents: Sequence[Document]) -> tuple[str, ...]:
        """What cannot be counted of a model that thinks first: the harness gives the answer without its thought."""
        marker = getattr(self.backend, "think_end_token", None)
        if marker is None or documents[0].requests[0].request_type != "generate_until":
            return ()
        return (
            f"the answer after think_end_token={marker} counts. An output that ended inside its thought (max_gen_toks) "
            "is scored as it stands and is not counted: the harness does not tell it from an answer without a thought.",
        )

    def _probe(self, binding: Binding, source: Binding, drawn: ValidationSet, fingerprint: str) -> TaskRecord:
        """Read the references' probability layer by layer, and keep the layers below the rise point."""
        result = self.backend.probe(validation.pairs(source, drawn.documents))
        log.info("%s\n%s", binding.name, result.table())
        return self._record(
            Variant.below(result.boundary, self.backend.shape.num_layers),
            "probe",
            fingerprint,
            validation=validation.drawn_documents(binding, source, drawn, drawn.documents),
            probe=result.to_json(),
            warnings=(*_of_another(binding, source), *drawn.warnings, *result.warnings),
        )

    def _default(self, binding: Binding) -> TaskRecord:
        num_layers = self.backend.shape.num_layers
        boundary = default_boundary(num_layers)
        warning = (
            "the task has no validation or training documents besides the evaluated ones, so no boundary could be "
            f"searched: the paper's default is taken, boundary={boundary} (15 of 32 layers, scaled to {num_layers}). "
            "sweep_task=<another task> names one to search on."
        )
        return self._record(
            Variant.below(boundary, num_layers, next(iter(self.backend.shape.adapters), "")),
            "default",
            self._task_fingerprint(binding),
            warnings=(warning,),
        )

    def _record(
        self,
        kept: Variant,
        method: Method,
        fingerprint: str,
        *,
        warnings: tuple[str, ...] = (),
        **found: Any,
    ) -> TaskRecord:
        stays, goes = self.backend.count_parameters(kept)
        if not stays and goes and not kept.is_base:
            warnings = (
                *warnings,
                f"{kept.label} keeps no parameter of this adapter, which has LoRA in other layers only: it is the base "
                "model.",
            )
        return TaskRecord(
            variant=str(kept),
            boundary=kept.boundary,
            num_layers=kept.num_layers,
            method=method,
            fingerprint=fingerprint,
            kept_parameters=stays,
            dropped_parameters=goes,
            warnings=warnings,
            **found,
        )

    def _task_fingerprint(self, binding: Binding) -> str:
        """What identifies answers to this task's prompts: model, adapter and dtype, task name and version."""
        return digest(self.backend.fingerprint_parts(), binding.name, binding.task.VERSION)


def _of_another(binding: Binding, source: Binding) -> tuple[str, ...]:
    if source is binding:
        return ()
    return (
        f"no document of its own could be searched on: what is kept was found on documents of task {source.name} "
        "(sweep_task), by that task's metric.",
    )
