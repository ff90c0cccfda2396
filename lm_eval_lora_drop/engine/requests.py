"""The harness's rules for a request, as HFLM has them at batch size 1 (lm_eval/models/huggingface.py), row by row.

HFLM looks for a stop sequence in the newest tokens, special tokens included, and cuts the text afterwards, special
tokens left out. Alone, a row stops there. In a batch it goes on until every row has met that stop sequence, and where
the sequence is a special token nothing cuts what it says meanwhile. Here every row ends where it ends alone.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from lm_eval_lora_drop.engine.states.arguments import why_no_cache
from lm_eval_lora_drop.engine.states.lengths import own_batch_lengths
from lm_eval_lora_drop.harness.documents import Document
from lm_eval_lora_drop.harness.facts.generation import cut_at_stop, generation_arguments, stop_sequences
from lm_eval_lora_drop.harness.model import HarnessModel
from lm_eval_lora_drop.text import logger

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

log = logger(__name__)

# Assisted generation takes one request at a time.
_ONE_ROW = ("prompt_lookup_num_tokens", "assistant_early_exit")
# What a greedy decoder can leave to its defaults; any other value in a model's generation config changes its outputs.
_PLAIN_GREEDY = {
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "min_length": 0,
    "min_new_tokens": None,
    # Transformers lets it win over the max_length by which HFLM says max_gen_toks.
    "max_new_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "guidance_scale": None,
    "watermarking_config": None,
    "stop_strings": None,
    "penalty_alpha": None,
    "dola_layers": None,
    **dict.fromkeys(_ONE_ROW),
    "use_mtp": False,
    "token_healing": False,
    "cache_implementation": None,
    "max_time": None,
}


@dataclass(frozen=True)
class Rules:
    """How a generation ends: stop sequences (the end-of-text string among them), and after how many tokens."""

    stops: tuple[str, ...]
    max_new_tokens: int
    end_tokens: frozenset[int]

    @classmethod
    def of(cls, lm: HarnessModel, generation_kwargs: Mapping[str, Any]) -> Rules:
        """The rules of a request to `lm`."""
        kwargs = generation_arguments(generation_kwargs, lm.max_gen_toks)
        end_of_text = lm.tok_decode(lm.eot_token_id, skip_special_tokens=False)
        stops = stop_sequences(kwargs["until"], end_of_text)
        ends = lm.model.generation_config.eos_token_id
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        # An empty stop sequence stays in: HFLM finds it in whatever a row says first, and cuts nothing at it.
        return cls(stops, int(kwargs["max_gen_toks"]), frozenset(ends))

    def ends_by(self, generated: Sequence[int], stop: str | None) -> str | None:
        """What ends an answer at its newest token, in words; None where it goes on. `stop` is what `StopWatch` met."""
        if generated[-1] in self.end_tokens:
            return "end token"
        if stop is not None:
            return f"stop sequence {stop!r}"
        return "token limit" if len(generated) >= self.max_new_tokens else None


class StopWatch:
    """Sees in a row's newest tokens whether it has met a stop sequence, as HFLM does for a row that is alone."""

    def __init__(self, lm: HarnessModel, stops: Sequence[str]) -> None:
        self._lm = lm
        # As lm_eval.models.utils_hf.MultiTokenEOSCriteria: of each sequence two tokens more than it takes itself,
        # because it may come out in other tokens. {tokens looked at: sequences}
        self._windows: dict[int, list[str]] = {}
        for stop in stops:
            length = len(lm.tokenizer.encode(stop, add_special_tokens=False))
            self._windows.setdefault(length + 2, []).append(stop)

    def met(self, rows: Sequence[Sequence[int]]) -> list[str | None]:
        """For each row of new tokens a stop sequence that its newest ones hold, or None. "" is held by any."""
        met: list[str | None] = [None] * len(rows)
        for window, stops in self._windows.items():
            recent = self._lm.tokenizer.batch_decode([row[-window:] for row in rows]) if rows else []
            met = [
                known if known is not None else next((stop for stop in stops if stop in text), None)
                for known, text in zip(met, recent, strict=True)
            ]
        return met


def end_each_alone(lm: HarnessModel, tokens: torch.Tensor, prompt_length: int, stops: Sequence[str]) -> torch.Tensor:
    """A batch of HFLM's, (rows, prompt and answer), with each answer ended where it ends at batch size 1: what comes
    after the first stop sequence is overwritten with padding."""
    if len(tokens) == 1 or lm.backend != "causal":
        return tokens
    watch = StopWatch(lm, stops)
    tokens = tokens.clone()
    for row in tokens[:, prompt_length:]:
        generated = row.tolist()
        met = watch.met([generated[: end + 1] for end in range(len(generated))])
        end, stop = next(((i, one) for i, one in enumerate(met) if one is not None), (len(generated), None))
        if stop and cut(lm, generated, stops) != cut(lm, generated[: end + 1], stops):
            warn_of_special_stop(lm, stop)
        row[end + 1 :] = lm.tokenizer.pad_token_id
    return tokens


def cut(lm: HarnessModel, tokens: Sequence[int], stops: Sequence[str]) -> str:
    """The text of an answer: without special tokens, and up to the first stop sequence."""
    return cut_at_stop(lm.tok_decode(tokens), stops)


# Models whose user has been warned; it keeps none of them alive.
_warned: weakref.WeakSet[Any] = weakref.WeakSet()


def warn_of_special_stop(lm: HarnessModel, stop: str) -> None:
    """Warn, once for a model, that `--model hf` goes on after this stop sequence in a batch, as we do not."""
    if lm.batch_size != 1 and lm not in _warned:
        _warned.add(lm)
        log.warning(
            "Answers end at %r, which contains a special token. --model hf with batch_size=%s does not end them there: "
            "its other rows go on, and its answers differ from these. Compare with --model hf at batch_size=1.",
            stop,
            lm.batch_size,
        )


def encode_prompt(lm: HarnessModel, prompt: str, rules: Rules) -> tuple[int, ...]:
    """The tokens of a prompt, cut on the left to leave room for the answer."""
    room = lm.max_length - rules.max_new_tokens
    if room <= 0:
        raise ValueError(
            f"max_gen_toks must be smaller than the model's maximum length {lm.max_length}, got {rules.max_new_tokens}."
        )
    tokens, _ = lm.tok_batch_encode([prompt], left_truncate_len=room, truncation=lm.truncation)
    return tuple(tokens[0].tolist())


def longest(lm: HarnessModel, request: Instance) -> int:
    """Tokens of a request's prompt and answer, at most."""
    given = request.args[1] if len(request.args) > 1 else ""
    if isinstance(given, str):
        return min(len(lm.tok_encode(str(request.args[0]))) + len(lm.tok_encode(given)), lm.max_length) + 1
    answer = int(generation_arguments(given, lm.max_gen_toks)["max_gen_toks"])
    return min(len(lm.tok_encode(str(request.args[0]))) + answer, lm.max_length)


def needs_own_batch(lm: HarnessModel, requests: Sequence[Instance]) -> list[bool]:
    """For each request whether only a batch of its own gives the model's answer: it can grow past a length at which the
    model changes, has beams (HFLM looks for stop sequences in the first few of a batch's beams), or is generated with
    assistance."""
    border = min(own_batch_lengths(lm), default=None)
    config = getattr(lm.model, "generation_config", None)

    def is_alone(request: Instance) -> bool:
        if request.request_type == "generate_until":
            beams, *assisted = (
                request.args[1].get(name, getattr(config, name, None)) for name in ("num_beams", *_ONE_ROW)
            )
            if (beams or 1) > 1 or any(assisted):
                return True
        return border is not None and longest(lm, request) > border

    return [is_alone(request) for request in requests]


def shareable(lm: HarnessModel, documents: Sequence[Document]) -> list[Document]:
    """The documents none of whose requests `needs_own_batch`."""
    return [document for document in documents if not any(needs_own_batch(lm, document.requests))]


def why_not_greedy(lm: HarnessModel, generation_kwargs: Mapping[str, Any]) -> str | None:
    """Why these generation arguments need the harness's own `generate`; None where plain greedy decoding does."""
    kwargs = generation_arguments(generation_kwargs, lm.max_gen_toks)
    if kwargs.pop("do_sample", False):
        return "the task samples"
    if kwargs.pop("temperature", 0.0) not in (0.0, None):
        return "the task sets a temperature"
    for name in ("until", "max_gen_toks"):
        kwargs.pop(name, None)
    if kwargs:
        return f"the task sets the generation argument {min(kwargs)}"
    config = getattr(lm.model, "generation_config", None) or GenerationConfig()
    for name, value in _PLAIN_GREEDY.items():
        if getattr(config, name, value) not in (value, None):
            return f"the model's generation config sets {name}"
    if lm.think_end_token is not None:
        return "thinking is cut from the answers"
    return None


def why_not_rows(lm: HarnessModel) -> str | None:
    """Why this model's cache has no rows that could branch and leave; None where it has keys and values only."""
    config = lm.model.config.get_text_config(decoder=True)
    others = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if others:
        return f"the model has layers of type {min(others)}"
    if getattr(config, "num_kv_shared_layers", None):
        return "layers of the model read each other's keys and values"
    return why_no_cache(lm)
