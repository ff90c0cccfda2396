"""The words between planner, runner, scorer and backend. Nothing here knows a model or a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from lm_eval_lora_drop.variant import Variant

if TYPE_CHECKING:
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import Task


@dataclass(frozen=True)
class AdapterShape:
    """What the candidates of a sweep depend on: decoder layers, kinds of module with LoRA (the last part of their
    names), the largest rank, and the names of the adapters where several are loaded."""

    num_layers: int
    modules: tuple[str, ...] = ()
    rank: int = 0
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True)
class MetricSpec:
    """One metric of a task, behind one of the task's filters. `range`: between which values a document's score lies,
    None where nobody has declared it."""

    name: str
    filter: str
    higher_is_better: bool
    range: tuple[float, float] | None = None

    @property
    def worst(self) -> float | None:
        """The worst value of a document, signed so that higher is better; None where the range is not known."""
        if self.range is None:
            return None
        return self.range[0] if self.higher_is_better else -self.range[1]

    def better(self, value: float, other: float) -> bool:
        """Whether `value` is strictly better than `other`."""
        return value > other if self.higher_is_better else value < other

    @property
    def sign(self) -> int:
        """1 where higher is better, -1 where lower is."""
        return 1 if self.higher_is_better else -1

    def __str__(self) -> str:
        return self.name if self.filter == "none" else f"{self.name},{self.filter}"


@dataclass(frozen=True)
class Document:
    """A validation document with the requests that the harness would make of it.

    `doc_id` is its index in the split it was drawn from; `requests` has one `Instance` per request (several for
    multiple choice), all of one request type; `key` is a digest of request type and arguments, so that an answer in the
    journal belongs to exactly these prompts. `cluster` names what it belongs together with (None: stands alone).
    Where the task samples, each request stands `repeats` times in a row: the number of a repeat is its place.
    """

    doc_id: int
    doc: Any
    requests: tuple[Instance, ...]
    key: str
    cluster: str | None = None
    repeats: int = 1


@dataclass(frozen=True)
class Work:
    """One document and the variants it is still to be answered under."""

    document: Document
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Answer:
    """What the model said to one document under one variant: one response per request, as the harness has them.

    A response is a string (generate_until), a pair of log-likelihood and is-greedy (loglikelihood), or a
    log-likelihood (loglikelihood_rolling).
    """

    variant: Variant
    document: Document
    responses: tuple[Any, ...]


Runner = Callable[[Sequence[Work]], Iterator[list[Answer]]]
"""Answers all work, in an order of its own, batch by batch: what has been yielded is safe to write down."""


@dataclass(frozen=True)
class Pass:
    """How a backend answers a sweep: by `runner`, whose kind is `engine` (shared, plain, vllm).

    `check` is what a check before trust found, for the record; its `answers` are good for the sweep.
    """

    runner: Runner
    engine: str
    check: dict[str, Any] | None = None
    answers: tuple[Answer, ...] = ()


class Peers(Protocol):
    """The processes that work together."""

    @property
    def rank(self) -> int:
        """0..world_size-1."""

    @property
    def world_size(self) -> int:
        """How many there are."""

    @property
    def has_silent_ones(self) -> bool:
        """Whether others compute with this one that do nothing more once the harness has its answers."""

    def all_gather_object(self, obj: Any) -> list[Any]:
        """The objects of all ranks, in the order of their ranks, on every rank."""


@dataclass(frozen=True, eq=False)
class Binding:
    """A task as one evaluation uses it: the task and the arguments that shape its prompts. `doc_ids` are the indices in
    the evaluated split of the documents that were named (`--samples`); None where none were."""

    task: Task
    prompt_arguments: dict[str, Any]
    doc_ids: Sequence[int] | None = None

    @property
    def name(self) -> str:
        """The task's name in the results."""
        return str(self.task.config.task)


class Reason(str, Enum):
    """Why a document is left out of what a search reads."""

    EVALUATED = "equals an evaluated document"
    NEARLY_EVALUATED = "nearly equals an evaluated document"
    TWICE = "equals a document drawn before"
    NEARLY_TWICE = "nearly equals a document drawn before"
    EXAMPLE = "as a few-shot example: equals an evaluated document"
    NEARLY_EXAMPLE = "as a few-shot example: nearly equals an evaluated document"


@dataclass(frozen=True)
class LeftOut:
    """A document that was left out, by its index in its split (of few-shot examples: among them).

    `of` is the index of the one it is compared with: in the evaluated split, or of a document drawn before.
    `similarity` is the Jaccard similarity of their character 5-grams, 1 where they are equal.
    """

    doc_id: int
    reason: Reason
    of: int
    similarity: float

    def __str__(self) -> str:
        return f"{self.doc_id} {self.reason.value} ({self.of}, similarity {self.similarity:.2f})"


@dataclass(frozen=True)
class ValidationSet:
    """The documents a sweep reads, in the order in which they were drawn, and what was left out on the way."""

    documents: tuple[Document, ...]
    split: str
    left_out: tuple[LeftOut, ...]
    warnings: tuple[str, ...] = field(default=())

    @property
    def fingerprint(self) -> str:
        """Digest of all prompts and their order."""
        return hashlib.sha256("".join(document.key for document in self.documents).encode()).hexdigest()


class ProbeFinding(Protocol):
    """What a search needs of a probe's result."""

    boundary: int
    warnings: tuple[str, ...]

    def table(self) -> str:
        """For the log."""

    def to_json(self) -> dict[str, Any]:
        """For the results file."""


class Encoder(Protocol):
    """How text becomes tokens: what scoring a reference's likelihood needs of a model."""

    @property
    def max_length(self) -> int:
        """Tokens of prompt and answer together."""

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is read as."""

    def tok_encode(self, string: str, *args: Any, **kwargs: Any) -> list[int]:
        """Text to token ids, as the harness does it."""

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Context and continuation, with trailing spaces moved as the harness moves them."""


class Backend(Encoder, Protocol):
    """What a search needs of a model."""

    @property
    def shape(self) -> AdapterShape:
        """Of the adapter that is loaded."""

    def peers(self) -> Peers:
        """The processes that evaluate together."""

    def prepare(self, documents: Sequence[Document], candidates: Sequence[Variant]) -> Pass:
        """How a sweep of `candidates` over `documents` is answered; every process calls it in step."""

    def memory(self, documents: Sequence[Document], candidates: Sequence[Variant]) -> str:
        """What a sweep of `candidates` over `documents` would take of the memory, in words."""

    def fingerprint_parts(self) -> Mapping[str, Any]:
        """What changes an answer, apart from the request and the variant; with the keys adapter, base and dtype."""

    def count_parameters(self, kept: Variant) -> tuple[int, int]:
        """Adapter parameters that `kept` keeps and drops."""

    def layer_scores(self, pairs: Sequence[tuple[str, str]]) -> Mapping[str, Sequence[float]]:
        """How much each decoder layer matters by several scores, on (prompt, reference) pairs.

        Raises:
            ArgumentError: the backend sees no layers.
        """

    def probe(self, pairs: Sequence[tuple[str, str]]) -> ProbeFinding:
        """The probe of (prompt, reference) pairs.

        Raises:
            ArgumentError: the backend sees no layers.
        """


class HarnessModel(Encoder, Protocol):
    """What engine and probe use of lm-eval's HFLM (lm_eval/models/huggingface.py), typed, and nothing else of it.

    Names are HFLM's own, underscores included.
    """

    model: Any
    tokenizer: Any
    config: Any
    cache_hook: Any
    batch_size: Any
    batch_size_per_gpu: Any
    mixed_precision_dtype: torch.dtype | None
    truncation: bool
    backend: str
    add_bos_token: bool | None
    softmax_dtype: torch.dtype | None
    think_end_token: str | int | None
    _world_size: int

    @property
    def device(self) -> torch.device:
        """Where inputs go."""

    @property
    def rank(self) -> int:
        """0..world_size-1."""

    @property
    def world_size(self) -> int:
        """How many processes evaluate together."""

    @property
    def max_gen_toks(self) -> int:
        """New tokens where a request names no limit."""

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""

    def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> str:
        """Token ids to text."""

    def tok_batch_encode(self, strings: list[str], **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Padded token ids and attention mask, each (strings, length)."""

    def harness_answers(self, request_type: str, requests: list[Instance], disable_tqdm: bool = False) -> list[Any]:
        """HFLM's own answers, under whatever layers are kept now (ours, in backends/hf.py)."""
