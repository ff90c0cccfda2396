"""All variants at once: the runner of a sweep (docs/explanation/engine.md)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from peft.tuners.lora.layer import ParamWrapper

from lm_eval_lora_drop.adapter.layers import AdapterLayers, why_whole_prompts
from lm_eval_lora_drop.endings import is_out_of_memory
from lm_eval_lora_drop.engine.generation import generate
from lm_eval_lora_drop.engine.loglikelihood import loglikelihoods
from lm_eval_lora_drop.engine.plain import plain_runner
from lm_eval_lora_drop.engine.requests import shareable, why_not_greedy, why_not_rows
from lm_eval_lora_drop.engine.session import Counters, Session
from lm_eval_lora_drop.engine.states.lengths import own_batch_lengths
from lm_eval_lora_drop.harness.documents import Answer, Document
from lm_eval_lora_drop.harness.model import HarnessModel
from lm_eval_lora_drop.sweep.backend import Runner, Work
from lm_eval_lora_drop.text import logger
from lm_eval_lora_drop.variant import Variant

log = logger(__name__)

_KINDS = {
    "generate_until": generate,
    "loglikelihood": loglikelihoods,
    "loglikelihood_rolling": loglikelihoods,
}


def why_not_shared(
    lm: HarnessModel, layers: AdapterLayers, documents: Sequence[Document], candidates: Sequence[Variant] = ()
) -> str | None:
    """Why these documents need the plain pass, in a few words; None where the shared pass may answer them.

    It tells what is known beforehand. What is not (an architecture with a way of its own) shows in `check`, or while
    running, and then the plain pass takes over.

    Raises:
        ArgumentError, AdapterError: a candidate that neither pass can run.
    """
    for variant in candidates:
        layers.adapter_names(variant.adapter)
        layers.wanted(variant)
    if reason := why_whole_prompts(lm.model) or why_not_rows(lm):
        return reason
    for module in (*layers.below, *(m for modules in layers.modules for m in modules), *layers.above):
        if isinstance(module, ParamWrapper):
            return "the adapter sits on parameters (target_parameters), which have no rows"
    for document in documents:
        for request in document.requests:
            if len(request.args) > 2 or request.request_type not in _KINDS:
                return "the task's requests are not text alone"
            if request.request_type == "generate_until":
                if reason := why_not_greedy(lm, request.args[1]):
                    return reason
                if not lm.tok_encode(request.args[0]):
                    return "a prompt has no tokens"
    if documents and not shareable(lm, documents):
        return f"all requests can grow past {min(own_batch_lengths(lm))} tokens, where the model changes its positions"
    return None


def shared_runner(
    lm: HarnessModel, layers: AdapterLayers, batch_size: int | None = None, counters: Counters | None = None
) -> Runner:
    """A runner that answers documents under all their variants in one go.

    `batch_size` is the number of rows (variant x document) at a time; None leaves it to the engine. `counters` is
    filled in as work is done. Documents that can grow past a length at which the model changes are left to the plain
    pass. Whatever turns out to be impossible while running is left, from then on, to the plain
    pass, with one warning in the log; running out of memory halves the batch instead.
    """
    counted = counters if counters is not None else Counters()
    session: Session | None = None

    def answer(work: Sequence[Work]) -> Iterator[list[Answer]]:
        nonlocal session
        session = session or Session(lm, layers, batch_size, counted)
        for kind, answer_kind in _KINDS.items():
            yield from answer_kind(session, [w for w in work if w.document.requests[0].request_type == kind])

    def run(work: Sequence[Work]) -> Iterator[list[Answer]]:
        work = [item for item in work if item.variants]
        done: set[tuple[int, Variant]] = set()
        if counted.fell_back is None:
            try:
                fit = {id(document) for document in shareable(lm, [item.document for item in work])}
                for answers in answer([item for item in work if id(item.document) in fit]):
                    counted.rows += len(answers)
                    done.update((id(given.document), given.variant) for given in answers)
                    yield answers
            # Nobody can list what a model's own code may raise when its batch is not what it expects.
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                counted.fell_back = f"{type(error).__name__}: {error}"
                log.warning("Falling back to the plain pass from here on (slower): %s", counted.fell_back)
        left = [
            Work(item.document, tuple(v for v in item.variants if (id(item.document), v) not in done)) for item in work
        ]
        for answers in plain_runner(lm, layers)([item for item in left if item.variants]):
            counted.rows += len(answers)
            yield answers

    return run
