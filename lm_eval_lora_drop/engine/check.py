"""The check before trust: a few real documents answered both ways, before the shared pass answers all of them.

A list of what cannot be shared is never complete: a model may flatten its batch, keep a bias in the place of a row, or
mix rows, and the shared pass would be silently wrong. So it is compared with the plain pass, under candidates that use
the branches, at two batch shapes. The plain pass answers request by request: some models count padding as text, and
two passes that both pad would agree on what is wrong. Rounding differs with the shape of a batch even where nothing is
wrong. The tolerance is what the plain pass differs from itself by at another batch size; an excess is a fault.
So is what no rounding does: a model whose own answers change with the batch by more than that sets no tolerance.

    log-likelihoods   of the requests themselves, and of generated text behind its prompt: may differ by `SLACK` times
                      what the plain pass differs from itself, and by a floor that is a few roundings of the dtype
    generated text    may differ only at a near tie: where the texts part, the plain pass must find the shared pass's
                      token as likely as its own, to within that floor
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lm_eval_lora_drop.adapter.health import compare_answers
from lm_eval_lora_drop.adapter.layers import AdapterLayers
from lm_eval_lora_drop.engine.plain import batches_of
from lm_eval_lora_drop.engine.requests import Rules, encode_prompt, longest
from lm_eval_lora_drop.engine.session import Counters
from lm_eval_lora_drop.engine.states.lengths import lengths
from lm_eval_lora_drop.harness.documents import Answer, Document
from lm_eval_lora_drop.harness.facts.generation import generation_arguments
from lm_eval_lora_drop.harness.facts.requests import new_request
from lm_eval_lora_drop.harness.model import HarnessModel
from lm_eval_lora_drop.sweep.backend import Runner, Work
from lm_eval_lora_drop.variant import Variant

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

DOCUMENTS = 2
"""Documents answered both ways, the shortest and the longest: two, so that there is padding, rows of different
documents, and parting groups; the longest, because some models differ only where a prompt is longer than a window."""
CANDIDATES = 3
"""Candidates they are answered under, spread over the given ones."""
GENERATING_CANDIDATES = 2
"""Of these, how many the plain pass generates text under: its decoding, a candidate and a document at a time, is the
dearest part of the check."""
TOKENS = 8
"""Of generated text, how many are compared before the sweep: with all of up to 64 tokens the check took 12 % of an
exhaustive sweep of 100 documents. Whole answers are compared during the sweep (`generation.WholeAnswers`)."""
SLACK = 4.0
"""How many times the plain pass's own differences may be exceeded: they are the largest of a few numbers, no bound."""
FLOOR = 1e-4
ROUNDINGS = 4.0
"""What a log-likelihood may differ by in any case, for every nat of it (at least one): `FLOOR`, or this many
roundings of the dtype if that is more (in bfloat16 0.03)."""
QUANTISED = 0.05
"""The most that kernels for quantised weights differ by with the shape of a batch, for every nat of a log-likelihood;
those of other models differ by their rounding."""

Key = tuple[Variant, int]
"""A variant, and the place of a document among those that are compared."""


@dataclass(frozen=True)
class PassDifference:
    """A request that the two passes answered differently, by more than `allowed` (in log-likelihood)."""

    variant: Variant
    doc_id: int
    shared: str
    plain: str
    by: float
    allowed: float

    def __str__(self) -> str:
        return (
            f"document {self.doc_id} under {self.variant.label}: {self.shared} from the shared pass, {self.plain} from "
            f"the plain one, {self.by:.3g} apart where {self.allowed:.3g} is rounding"
        )


@dataclass
class CheckResult:
    """What the check found; it fills as the check goes on.

    `tokens` and `loglikelihoods` were compared; `largest` is the largest difference of two log-likelihoods between the
    passes, `noise` that of the plain pass to itself. `near_ties` texts differ where greedy decoding cannot decide.
    `error` is what the shared pass raised, if it did. `idle` says why the adapter seems not to be applied, where full
    and base are among the candidates and answer alike. `unsteady` says that the plain pass itself changes with the
    batch. `answers` are the plain pass's own, good for the sweep: none where only the beginning of the documents'
    answers was asked for.
    """

    differences: list[PassDifference] = field(default_factory=list)
    error: str | None = None
    idle: str | None = None
    unsteady: str | None = None
    tokens: int = 0
    loglikelihoods: int = 0
    near_ties: int = 0
    largest: float = 0.0
    noise: float = 0.0
    answers: tuple[Answer, ...] = ()
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the shared pass may answer the sweep."""
        return not self.differences and self.error is None

    @property
    def warnings(self) -> list[str]:
        """What the user should know, whichever pass answers."""
        return [one for one in (self.idle, self.unsteady) if one]

    def __str__(self) -> str:
        if self.error is not None:
            return f"the shared pass failed: {self.error}"
        compared = f"{self.tokens} tokens, {self.loglikelihoods} log-likelihoods"
        if self.differences:
            return f"{self.differences[0]} ({len(self.differences)} of these; {compared})"
        return f"({compared}, max difference {self.largest:.2g}, {self.near_ties} near ties)"

    def to_json(self) -> dict[str, Any]:
        """For the record."""
        return {
            "passed": self.passed,
            "tokens": self.tokens,
            "loglikelihoods": self.loglikelihoods,
            "near_ties": self.near_ties,
            "largest": self.largest,
            "noise": self.noise,
            "error": self.error,
            "warnings": self.warnings,
            "differences": [str(difference) for difference in self.differences],
            "seconds": self.seconds,
        }


def choose_candidates(candidates: Sequence[Variant]) -> tuple[Variant, ...]:
    """Some of the candidates, spread evenly from the first to the last; among boundaries that is full, middle, base."""
    if len(candidates) <= CANDIDATES:
        return tuple(candidates)
    last = len(candidates) - 1
    return tuple(candidates[round(place * last / (CANDIDATES - 1))] for place in range(CANDIDATES))


def choose_documents(documents: Sequence[Document]) -> list[Document]:
    """The shortest and the longest by the characters of their requests; the first of equal ones."""
    by_length = sorted(documents, key=lambda one: sum(len(str(request.args[0])) for request in one.requests))
    return by_length if len(by_length) <= DOCUMENTS else [by_length[0], by_length[-1]]


def documents_at_lengths(lm: HarnessModel, documents: Sequence[Document]) -> list[Document]:
    """For each length in the model's configuration (a window, say) that lies among those of the documents' requests,
    the document that comes nearest to it."""
    longest_of = [max(longest(lm, request) for request in document.requests) for document in documents]
    found = {}
    for length in lengths(lm):
        if longest_of and min(longest_of) <= length < max(longest_of):
            nearest = min(range(len(documents)), key=lambda index: abs(longest_of[index] - length - 1))
            found[nearest] = documents[nearest]
    return list(found.values())


def check_shared(
    lm: HarnessModel,
    layers: AdapterLayers,
    shared: Callable[[int | None, Counters], Runner],
    plain: Runner,
    documents: Sequence[Document],
    candidates: Sequence[Variant],
) -> CheckResult:
    """Answer a few of the documents both ways and compare.

    Args:
        shared: makes a shared runner from the maximum number of rows in a batch (None: no limit) and the counters, as
            `partial(shared_runner, lm, layers)` does.
        plain: the plain runner.
        documents: those of the sweep, all of one request type; the shortest, the longest and those that come nearest to
            a length in the model's configuration are taken.
        candidates: those of the sweep; `choose_candidates` says which are taken.
    """
    started = time.perf_counter()
    check = _Check(lm, layers, shared, plain, choose_candidates(candidates))
    found, few = check.found, choose_documents(documents)
    few += [document for document in documents_at_lengths(lm, documents) if document not in few]
    try:
        if few and few[0].requests[0].request_type == "generate_until":
            beginnings = [_beginning(lm, document) for document in few]
            answers = check.texts(beginnings)
            if beginnings == few:
                found.answers = tuple(answers)
            # Greedy decoding can hide a fault that numbers show.
            if found.error is None and any(_generated(answers)):
                check.loglikelihoods([_scoring(few, answers)])
        elif few:
            found.answers = tuple(check.loglikelihoods(few))
    # A model that answers one request at a time may fail at two: what cannot be checked is not trusted.
    except Exception as error:  # noqa: BLE001 - nobody can list what a model's own code may raise
        found.error = f"cannot be checked, {type(error).__name__}: {error}"
    found.seconds = time.perf_counter() - started
    return found


@dataclass
class _Check:
    lm: HarnessModel
    layers: AdapterLayers
    shared: Callable[[int | None, Counters], Runner]
    plain: Runner
    variants: tuple[Variant, ...]
    found: CheckResult = field(default_factory=CheckResult)

    def texts(self, documents: Sequence[Document]) -> list[Answer]:
        """Compare generated text under `GENERATING_CANDIDATES` of the candidates; returns the plain pass's answers."""
        variants = self.variants[:GENERATING_CANDIDATES]
        expected = self._plain(documents, variants, rows=1)
        for found in self._shared(documents):
            for key, answer in expected.items():
                for plain, shared, request in zip(
                    answer.responses, found[key].responses, answer.document.requests, strict=True
                ):
                    self.found.tokens += len(self.lm.tok_encode(plain, add_special_tokens=False))
                    if plain != shared:
                        self._judge(answer, request, shared, plain)
        return list(expected.values())

    def loglikelihoods(self, documents: Sequence[Document]) -> list[Answer]:
        """Compare numbers; returns the plain pass's answers."""
        expected = self._plain(documents, self.variants, rows=1)
        again = self._plain(documents, self.variants, rows=max(2, len(documents)))
        for key, answer in expected.items():
            for alone, batched in zip(_numbers(answer), _numbers(again[key]), strict=True):
                self.found.noise = max(self.found.noise, abs(alone - batched))
                if abs(alone - batched) > self._most(alone):
                    self.found.unsteady = _unsteady(answer, alone, batched)
        self.found.idle = self._idle(list(expected.values()))
        for found in self._shared(documents):
            for key, answer in expected.items():
                for plain, shared in zip(_numbers(answer), _numbers(found[key]), strict=True):
                    self.found.loglikelihoods += 1
                    # NaN is a difference of its own kind: never below any bound.
                    by, allowed = abs(plain - shared), self._allowed(plain)
                    self.found.largest = max(self.found.largest, by)
                    if not by <= allowed:
                        self._differ(answer, f"{shared:.6g}", f"{plain:.6g}", by, allowed)
        return list(expected.values())

    def _idle(self, answers: Sequence[Answer]) -> str | None:
        """Why the adapter seems not to be applied: full adapter and base model answer alike."""
        # Of several adapters one is compared; the base model is the same without any of them.
        variants = [answer.variant for answer in answers]
        ends = [next(filter(is_end, variants), None) for is_end in (lambda v: v.is_full, lambda v: v.is_base)]
        full, base = ([n for answer in answers if answer.variant == end for n in _numbers(answer)] for end in ends)
        noise = min(self.found.noise, self._most(1.0))
        return compare_answers(full, base, noise) if full and base else None

    def _allowed(self, number: float) -> float:
        return SLACK * min(self.found.noise, self._most(number)) + rounding(self.lm, number)

    def _most(self, number: float) -> float:
        """What a log-likelihood may change by with the shape of the batch."""
        return QUANTISED * max(1.0, abs(number)) if is_quantised(self.lm) else rounding(self.lm, number)

    def _judge(self, answer: Answer, request: Instance, shared: str, plain: str) -> None:
        """Whether two texts part at a near tie of the plain pass's own logits."""
        with self.layers.keep(answer.variant):
            by, allowed = divergence(self.lm, request, shared, plain)
        if by <= allowed:
            self.found.near_ties += 1
        else:
            self._differ(answer, repr(shared), repr(plain), by, allowed)

    def _differ(self, answer: Answer, shared: str, plain: str, by: float, allowed: float) -> None:
        self.found.differences.append(
            PassDifference(answer.variant, answer.document.doc_id, shared, plain, by, allowed)
        )

    def _plain(self, documents: Sequence[Document], variants: tuple[Variant, ...], rows: int) -> dict[Key, Answer]:
        with batches_of(self.lm, rows):
            return _by_key(self.plain, documents, variants)

    def _shared(self, documents: Sequence[Document]) -> Iterator[dict[Key, Answer]]:
        """At two batch shapes: all rows at once, and documents one after the other."""
        for rows in (None, len(self.variants)):
            counters = Counters(compared=None)
            found = _by_key(self.shared(rows, counters), documents, self.variants)
            self.found.error = self.found.error or counters.fell_back
            yield found


def is_quantised(lm: HarnessModel) -> bool:
    """Whether the base model's weights are quantised."""
    return getattr(lm.model.config, "quantization_config", None) is not None


def _unsteady(answer: Answer, alone: float, batched: float) -> str:
    return (
        f"the model itself answers otherwise in a batch: a log-likelihood of document {answer.document.doc_id} under "
        f"{answer.variant.label} is {alone:.6g} alone and {batched:.6g} beside others, which is more than rounding. "
        "It may count padding as text, or look ahead where nothing is padded. Only batch_size=1 gives its own answers."
    )


def divergence(lm: HarnessModel, request: Instance, ours: str, theirs: str, slack: float = 0.0) -> tuple[float, float]:
    """Where greedy decoding could not decide between two answers to a request: (how much less likely the model, as it
    is now, finds our token than its own where the texts part, how much is rounding), in nats.

    `theirs` is what the harness's own decoding said; `slack` is added to what rounding allows.
    """
    one, other = (lm.tok_encode(text, add_special_tokens=False) for text in (ours, theirs))
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    prompt = encode_prompt(lm, request.args[0], Rules.of(lm, request.args[1]))
    context = torch.tensor([[*prompt, *one[:same]]], device=lm.device)
    with torch.inference_mode():
        logits = lm.model(input_ids=context).logits[0, -1].float()
    likeliest = logits.log_softmax(-1).topk(2).values
    # Where ours stopped instead, its token is not in the text: then the second likeliest it must be.
    ours_at = logits.log_softmax(-1)[one[same]] if same < len(one) else likeliest[1]
    # Two logits differ by up to twice what one does.
    return float(likeliest[0] - ours_at), 2 * (slack + rounding(lm, float(logits.abs().max())))


def rounding(lm: HarnessModel, number: float) -> float:
    """What a log-likelihood or logit of this size may differ by in any case."""
    dtype = lm.mixed_precision_dtype or lm.model.get_base_model().dtype
    return max(FLOOR, ROUNDINGS * torch.finfo(dtype).eps) * max(1.0, abs(number))


def _by_key(runner: Runner, documents: Sequence[Document], variants: tuple[Variant, ...]) -> dict[Key, Answer]:
    place = {id(document): index for index, document in enumerate(documents)}
    work = [Work(document, variants) for document in documents]
    return {(given.variant, place[id(given.document)]): given for answers in runner(work) for given in answers}


def _numbers(answer: Answer) -> list[float]:
    return [response[0] if isinstance(response, tuple) else response for response in answer.responses]


def _generated(answers: Sequence[Answer]) -> Iterator[tuple[str, str]]:
    """(prompt, text) of the answers under the first variant, where neither is blank."""
    for answer in answers:
        if answer.variant == answers[0].variant:
            for request, text in zip(answer.document.requests, answer.responses, strict=True):
                # The harness takes no context of nothing but white space for a log-likelihood.
                if text.strip() and request.args[0].strip():
                    yield request.args[0], text


def _beginning(lm: HarnessModel, document: Document) -> Document:
    """A document that asks for the first `TOKENS` tokens only; the document itself where it asks for no more."""
    asked = [generation_arguments(request.args[1], lm.max_gen_toks) for request in document.requests]
    if all(kwargs["max_gen_toks"] <= TOKENS for kwargs in asked):
        return document
    requests = [
        new_request(
            "generate_until",
            (request.args[0], {**kwargs, "max_gen_toks": min(kwargs["max_gen_toks"], TOKENS)}),
            index=number,
        )
        for number, (request, kwargs) in enumerate(zip(document.requests, asked, strict=True))
    ]
    return Document(document.doc_id, document.doc, tuple(requests), "check")


def _scoring(documents: Sequence[Document], answers: Sequence[Answer]) -> Document:
    """A document that asks for the log-likelihoods of what was generated."""
    requests = [
        new_request("loglikelihood", (prompt, text), index=number)
        for number, (prompt, text) in enumerate(_generated(answers))
    ]
    return Document(documents[0].doc_id, {}, tuple(requests), "check")
