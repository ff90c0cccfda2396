"""The test split under other variants beside the chosen one (`evaluate=`): answered and journaled.

Two moments. While the harness asks for the chosen variant's answers, `answer_together` gives them from one shared pass
of all variants, where that pass gives the harness's own. When the harness has all answers, `answer_others` answers what
the journal still lacks, and every variant is scored (`evaluated_scores`). Nothing of the others gets into the
harness's answer cache, which knows no variants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from lm_eval.api.instance import Instance
from tqdm import tqdm

from lm_eval_lora_drop.backends.evaluated_scores import Key, ScoredDocument, evaluated_record, score_documents
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness.documents import Answer, Binding, Document
from lm_eval_lora_drop.harness.fields import cluster_of
from lm_eval_lora_drop.harness.prompts import document_of
from lm_eval_lora_drop.record.evaluated import EvaluatedRecord
from lm_eval_lora_drop.record.journal import Journal
from lm_eval_lora_drop.sweep.backend import Pass, Peers, Work
from lm_eval_lora_drop.sweep.run import in_step
from lm_eval_lora_drop.text import logger
from lm_eval_lora_drop.variant import AdapterShape, Variant

log = logger(__name__)

Prepare = Callable[[Sequence[Document], Sequence[Variant]], Pass]
"""The pass that answers documents under variants; all processes call it in step."""


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
    _scored: list[ScoredDocument] | None = None

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to be had of the others."""
        return self._scored is not None or self.problem is not None

    def answer_together(
        self, requests: Sequence[Instance], prepare: Prepare, cache_hook: Any, *, quiet: bool
    ) -> list[Any] | None:
        """The chosen variant's answers to requests of one type, from one shared pass with the others; None where there
        is no such pass. For requests to which that pass gives the harness's own answers.

        Args:
            requests: of this task; some stand there twice (`repeats`, and where the harness pads).
            prepare: see `Prepare`.
            cache_hook: the harness's, which gets the chosen variant's answers.
            quiet: no progress bar.
        """
        parts = [part for _, some in _documents(self.binding, requests) for part in some]
        answers = self._answers(parts, (self.kept, *self.others), prepare, is_shared=True, quiet=quiet)
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

    def _answer_and_score(self, prepare: Prepare) -> list[ScoredDocument]:
        task = self.binding.task
        documents = _documents(self.binding, task.instances, cluster_of(task))
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
        scored = in_step(
            self.peers, lambda: score_documents(self.binding.task, self.kept, self.others, documents, answers)
        )
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

    def record(self, *, saves_samples: bool) -> EvaluatedRecord | None:
        """For the results file; None where the others were not answered. A panel is asked here.

        Args:
            saves_samples: whether the others' outputs are written down too.
        """
        if not self._scored:
            return None
        try:
            return evaluated_record(
                self.binding,
                (self.kept, *self.others),
                self._scored,
                engine=self.engine,
                judges=self.asked_for,
                saves_samples=saves_samples,
            )
        # As when they are answered.
        except Exception as error:  # noqa: BLE001
            self._fail(error)
            return None


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
