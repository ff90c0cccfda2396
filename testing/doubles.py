"""A runner that answers by a rule instead of a model, and processes that are threads."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_lora_drop.harness.documents import Answer, Document
from lm_eval_lora_drop.metrics.corpus import BLEU_ZH
from lm_eval_lora_drop.record.journal import Journal
from lm_eval_lora_drop.record.schema import SweepRecord
from lm_eval_lora_drop.sweep.backend import Pass, Runner, Work
from lm_eval_lora_drop.sweep.candidates import boundaries
from lm_eval_lora_drop.sweep.metric import resolve_metric
from lm_eval_lora_drop.sweep.run import SweepSettings, run_sweep
from lm_eval_lora_drop.sweep.score import Scorer

L = 6


def questions(**sizes: int) -> dict[str, list[dict[str, Any]]]:
    """So many documents for each split, with questions and answers."""
    return {
        split: [{"question": f"{split} {i}?", "answer": f"answer {i}"} for i in range(size)]
        for split, size in sizes.items()
    }


def sweep(
    task: Any,
    folder: Path,
    runner: Runner,
    *,
    peers: Any = None,
    documents: Any = None,
    ks: Sequence[int] = range(L + 1),
    layers: int = L,
    **settings: Any,
) -> SweepRecord:
    """A sweep over boundaries, by default on the task's validation documents, with a journal in `folder`."""
    peers = peers or One()
    found = run_sweep(
        documents or make_documents(task),
        lambda: Pass(runner, "rule"),
        Scorer(task, resolve_metric(task, None)),
        SweepSettings(boundaries(ks, layers), **settings),
        Journal(folder, "sha256:" + "ab" * 32, "toy", rank=peers.rank, settings={"adapter": "a"}),
        peers=peers,
    )
    # Where everything came from the journal nothing was run; the rest of a record must not tell.
    return replace(found, engine="")


def bleu_items(*shares: float) -> list[list[Any]]:
    """What BLEU sums over 40 outputs, a row for each share of their signs that are the reference's."""
    rng = np.random.default_rng(0)
    references = ["".join(rng.choice(list("天地玄黄宇宙洪荒日月盈昃"), size=10)) for _ in range(40)]
    return [
        [BLEU_ZH.statistics("".join(w if rng.random() < share else "某" for w in r), r) for r in references]
        for share in shares
    ]


def make_documents(task: Any, docs: Sequence[dict[str, Any]] | None = None) -> list[Document]:
    """The documents of the validation split, with the requests that the task itself makes of them."""
    documents = []
    for doc_id, doc in enumerate(docs if docs is not None else task.validation_docs()):
        context = task.fewshot_context(doc, num_fewshot=0)
        made = task.construct_requests(doc=doc, ctx=context, metadata=(task.config.task, doc_id, 1))
        requests = tuple(made) if isinstance(made, list) else (made,)
        key = hashlib.sha256(repr([request.args for request in requests]).encode()).hexdigest()
        documents.append(Document(doc_id, doc, requests, key))
    return documents


def uniform(*parts: object) -> float:
    """A number in [0, 1) that depends on `parts` alone."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big") / 2**56


@dataclass
class RuleRunner:
    """Answers each pair by `rule(K, document)`, `batch` documents at a time, and keeps what it was asked."""

    rule: Callable[[int, Document], tuple[Any, ...]]
    batch: int = 2
    asked: list[tuple[int, int]] = field(default_factory=list)
    fails_after: int | None = None

    def __call__(self, work: Sequence[Work]) -> Iterator[list[Answer]]:
        for start in range(0, len(work), self.batch):
            answers = []
            for item in work[start : start + self.batch]:
                for variant in item.variants:
                    boundary = variant.boundary
                    assert boundary is not None
                    if self.fails_after is not None and len(self.asked) >= self.fails_after:
                        raise RuntimeError("the machine was switched off")
                    self.asked.append((boundary, item.document.doc_id))
                    answers.append(Answer(variant, item.document, self.rule(boundary, item.document)))
            yield answers


def exact_match_rule(accuracy: dict[int, float]) -> Callable[[int, Document], tuple[str]]:
    """Right answers to about a share `accuracy[K]` of documents; what is right at one K is so at every better one."""

    def rule(boundary: int, document: Document) -> tuple[str]:
        right = uniform(document.doc["question"]) < accuracy[boundary]
        return (document.doc["answer"] if right else "something else",)

    return rule


@dataclass(frozen=True)
class One:
    """A process on its own."""

    rank: int = 0
    world_size: int = 1

    def all_gather_object(self, obj: Any) -> list[Any]:
        return [obj]


class Threads:
    """`world_size` processes as threads of this one, in step at every gather; a rank that is missing is an error."""

    def __init__(self, world_size: int) -> None:
        self._barrier = threading.Barrier(world_size, timeout=20)
        self._slots: list[Any] = [None] * world_size
        self.gathers = [0] * world_size

    @dataclass(frozen=True)
    class Member:
        group: Threads
        rank: int
        world_size: int

        def all_gather_object(self, obj: Any) -> list[Any]:
            group = self.group
            group._slots[self.rank] = obj
            group._barrier.wait()
            gathered = list(group._slots)
            group._barrier.wait()
            group.gathers[self.rank] += 1
            return gathered

    def run(self, work: Callable[[Threads.Member], Any]) -> list[Any]:
        """`work(member)` on every rank; what each returned, or the exception it raised."""
        outcomes: list[Any] = [None] * len(self._slots)

        def target(rank: int) -> None:
            try:
                outcomes[rank] = work(self.Member(self, rank, len(outcomes)))
            except Exception as error:  # noqa: BLE001
                outcomes[rank] = error

        threads = [threading.Thread(target=target, args=(rank,)) for rank in range(len(outcomes))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return outcomes
