"""Finds what of the adapter a task is answered with, on validation documents, or says why the default is taken.

Backend-free: what it needs of a model is `work.Backend`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness.documents import Binding, Document
from lm_eval_lora_drop.options import LoraDropArgs
from lm_eval_lora_drop.record.choice import recorded_choice
from lm_eval_lora_drop.record.events import Broadcast, Decided
from lm_eval_lora_drop.record.fingerprint import described, digest
from lm_eval_lora_drop.record.journal import Journal
from lm_eval_lora_drop.record.schema import Method, SweepRecord, TaskRecord
from lm_eval_lora_drop.sweep import documents as validation
from lm_eval_lora_drop.sweep.backend import Backend
from lm_eval_lora_drop.sweep.candidates import SEARCHED, candidates_of
from lm_eval_lora_drop.sweep.documents.reference_likelihood import REFERENCE_LOGLIKELIHOOD
from lm_eval_lora_drop.sweep.dry_run import plan_of_sweep
from lm_eval_lora_drop.sweep.measure import Measured, Measurer, SearchInput
from lm_eval_lora_drop.sweep.metric import resolve_metric, scoring_of
from lm_eval_lora_drop.sweep.tradeoffs.jointly import choose_jointly
from lm_eval_lora_drop.text import logger
from lm_eval_lora_drop.variant import Variant, default_boundary

log = logger(__name__)


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

    @property
    def _measurer(self) -> Measurer:
        return Measurer(self.backend, self.args, self.folder, self.listeners)

    def journal_of_test_split(self, binding: Binding) -> Journal:
        """Where answers to the evaluated documents stand."""
        return self._measurer.journal(binding, binding, of=".test")

    def decide(self, binding: Binding) -> TaskRecord:
        """The record of one task: as given, by a sweep or the probe, or the default where there are no documents.

        Raises:
            ArgumentError: the task has no such metric, or the backend cannot do what was asked for.
        """
        start = time.perf_counter()
        fixed = self.args.spec.resolve(self.backend.shape.num_layers)
        if fixed is not None:
            method: Method = "default" if self.args.spec.kind == "default" else "given"
            record = self._record(fixed, method, self._measurer.task_fingerprint(binding))
        elif self.args.spec.kind == "recorded":
            assert self.args.spec.source is not None
            choice = recorded_choice(self.args.spec.source, binding.name, self.backend.fingerprint_parts())
            record = self._record(
                choice.variant, "recorded", self._measurer.task_fingerprint(binding), source=str(choice.path)
            )
        else:
            record = self._find(binding)
            if not record.from_answer_cache:
                record = replace(record, seconds=round(time.perf_counter() - start, 3))
        return self._report(binding, record)

    def decide_jointly(self, bindings: Sequence[Binding]) -> dict[str, TaskRecord]:
        """The records of several tasks with one choice for all of them (`sweep_jointly`), by a sweep of each.

        Raises:
            ArgumentError: as `decide`, or a task has no documents to search on.
        """
        how = self.args.sweep_jointly
        assert how is not None
        inputs = []
        for binding in bindings:
            found = self._draw(binding)
            if found is None:
                raise ArgumentError(
                    f"sweep_jointly={how} takes one candidate for all tasks ({', '.join(one.name for one in bindings)})"
                    f", and {binding.name} has no validation or training documents besides the evaluated ones. Name a "
                    "task to search on with sweep_task, or evaluate it in another run."
                )
            inputs.append(found)
        # The choice for one task is another one beside other tasks.
        own = sorted(one.fingerprint for one in inputs)
        inputs = [replace(one, fingerprint=digest(one.fingerprint, how, own)) for one in inputs]
        records = {one.binding.name: self.recall(one.fingerprint) for one in inputs}
        if not all(records.values()):
            measured = {one.binding.name: self._measurer.measure(one) for one in inputs}
            sweeps = choose_jointly(
                {name: one.sweep for name, one in measured.items()},
                {name: one.judged for name, one in measured.items()},
                how,
                self.backend.shape.num_layers,
            )
            records = {name: self._conclude(one, sweeps[name]) for name, one in measured.items()}
        return {one.name: self._report(one, record) for one in bindings if (record := records[one.name]) is not None}

    def _report(self, binding: Binding, record: TaskRecord) -> TaskRecord:
        for warning in record.warnings:
            log.warning("%s: %s", binding.name, warning)
        self.listeners.tell(Decided(binding.name, record))
        return record

    def _find(self, binding: Binding) -> TaskRecord:
        found = self._draw(binding)
        if found is None:
            return self._default(binding)
        if left_out := found.drawn.left_out:
            shown = "; ".join(map(str, left_out[:3])) + ("; ..." if len(left_out) > 3 else "")
            log.info("%s: left out %d drawn documents: %s", binding.name, len(left_out), shown)
        recalled = self.recall(found.fingerprint)
        if recalled is not None:
            log.info("%s: %s as recorded in the answer cache", binding.name, recalled.kept.label)
            return recalled
        if self.args.spec.kind == "probe":
            return self._probe(found)
        measured = self._measurer.measure(found)
        return self._conclude(measured, self._measurer.bounded(measured))

    def _draw(self, binding: Binding) -> SearchInput | None:
        """What a search reads; None where there is no document to search on."""
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
                tasks = [self._measurer.task_fingerprint(one) for one in dict.fromkeys((binding, source))]
                # Their references decide too.
                documents = [described(document.doc) for document in drawn.documents]
                scored = [scoring_of(one.task) for one in dict.fromkeys((binding, source))]
                fingerprint = digest(*tasks, drawn.fingerprint, documents, scored)
                return SearchInput(binding, source, metric, drawn, fingerprint)
        return None

    def _sources(self, binding: Binding) -> Iterator[Binding]:
        """The tasks whose documents may be searched on: its own first, then `sweep_task`."""
        own = validation.draws_from(binding.task) is not None
        if own and self.args.sweep_task is not None:
            log.warning(
                "sweep_task=%s is read only if %s's own validation documents, which it has, cannot be drawn. Leave "
                "sweep_task out.",
                self.args.sweep_task,
                binding.name,
            )
        if self.args.sweep_task is None or own:
            yield binding
        if self.args.sweep_task is not None:
            yield validation.other_task(self.args.sweep_task, binding)

    def _conclude(self, measured: Measured, sweep: SweepRecord) -> TaskRecord:
        """The record of a task whose candidates were measured, with what `sweep` chose among them."""
        given, documents = measured.given, measured.documents
        return self._record(
            Variant.parse(sweep.chosen, self.backend.shape.num_layers),
            "sweep",
            given.fingerprint,
            metric=measured.scorer.metric,
            validation=validation.drawn_documents(given.binding, given.source, given.drawn, documents),
            sweep=sweep,
            candidate_parameters=measured.parameters,
            also=measured.also,
            journal=str(measured.journal),
            seconds=measured.seconds,
            warnings=(
                *_of_another(given),
                *given.drawn.warnings,
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
        documents = found.documents()
        compared = candidates_of(self.args, self.backend.shape)
        candidates = compared.variants
        bound = "" if self.args.sweep_strategy == "exhaustive" else "at most "
        journal = self._measurer.journal(binding, found.source)
        known = journal.read()
        return plan_of_sweep(
            binding.name,
            str(found.metric or REFERENCE_LOGLIKELIHOOD),
            documents=len(documents),
            split=found.drawn.split,
            candidates=len(candidates),
            known=sum((str(variant), document.key) in known for document in documents for variant in candidates),
            bound="at least " if compared.name in SEARCHED else bound,
            seconds_per_pair=journal.seconds_per_pair({document.key for document in documents}),
            processes=self.backend.peers().world_size,
            memory=self.backend.memory(documents, candidates),
            evaluated=self._test_split(binding),
        )

    def _test_split(self, binding: Binding) -> str:
        """What answering the evaluated documents takes, with what a panel is asked about."""
        named = self.args.evaluate
        ways = " and ".join(named or ("chosen", "full"))
        documents = len({request.doc_id for request in binding.task.instances})
        text = (
            f"{documents:,} documents under {ways}{'' if named else ' (full only where one shared pass answers both)'}"
        )
        if getattr(binding.task, "judging", None) is None:
            return text
        return f"{text}; the panel judges {documents * len(named or ('chosen',)):,} outputs"

    def _thinking(self, documents: Sequence[Document]) -> tuple[str, ...]:
        """What cannot be counted of a model that thinks first: the harness gives the answer without its thought."""
        marker = getattr(self.backend, "think_end_token", None)
        if marker is None or documents[0].requests[0].request_type != "generate_until":
            return ()
        return (
            f"the answer after think_end_token={marker} counts. An output that ended inside its thought (max_gen_toks) "
            "is scored like an answer and is not counted: the harness does not distinguish the two.",
        )

    def _probe(self, given: SearchInput) -> TaskRecord:
        """Read the references' probability layer by layer, and keep the layers below the rise point."""
        binding, source, drawn = given.binding, given.source, given.drawn
        result = self.backend.probe(validation.pairs(source, drawn.documents))
        log.info("%s\n%s", binding.name, result.table())
        return self._record(
            Variant.below(result.boundary, self.backend.shape.num_layers),
            "probe",
            given.fingerprint,
            validation=validation.drawn_documents(binding, source, drawn, drawn.documents),
            probe=result.to_json(),
            warnings=(*_of_another(given), *drawn.warnings, *result.warnings),
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
            self._measurer.task_fingerprint(binding),
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


def _of_another(given: SearchInput) -> tuple[str, ...]:
    if given.source is given.binding:
        return ()
    return (
        f"no document of its own could be searched on: what is kept was found on documents of task {given.source.name} "
        "(sweep_task), by that task's metric.",
    )
