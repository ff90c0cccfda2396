"""The harness's rules for a request, as HFLM has them (lm_eval/models/huggingface.py), for a row that stops by itself.

HFLM stops a batch when every row has met a stop sequence and cuts the text afterwards; a row here stops as soon as what
it has said is sure to be cut, which gives the same text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from transformers import GenerationConfig

from lm_eval_lora_drop.engine.states.arguments import why_no_cache
from lm_eval_lora_drop.harness.work import HarnessModel

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
    "prompt_lookup_num_tokens": None,
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
        kwargs = normalize_gen_kwargs(dict(generation_kwargs), lm.max_gen_toks)
        end_of_text = lm.tok_decode(lm.eot_token_id, skip_special_tokens=False)
        stops = handle_stop_sequences(kwargs["until"], eos=end_of_text)
        ends = lm.model.generation_config.eos_token_id
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        # An empty stop sequence stays in: HFLM finds it in whatever a row says first, and cuts nothing at it.
        return cls(tuple(stops), int(kwargs["max_gen_toks"]), frozenset(ends))

    def text(self, lm: HarnessModel, tokens: Sequence[int]) -> str:
        """The answer in `tokens`, cut at the first stop sequence."""
        return postprocess_generated_text(lm.tok_decode(tokens), list(self.stops), None)


class StopWatch:
    """Sees in a row's newest tokens whether it has met a stop sequence."""

    def __init__(self, lm: HarnessModel, rules: Rules) -> None:
        self._lm = lm
        self._rules = rules
        # As lm_eval.models.utils_hf.MultiTokenEOSCriteria: two tokens more than the sequence itself takes, because a
        # sequence may come out in other tokens.
        lengths = [len(lm.tokenizer.encode(stop, add_special_tokens=False)) for stop in rules.stops]
        self._window = max(lengths, default=0) + 2

    def met(self, rows: Sequence[Sequence[int]]) -> list[bool]:
        """For each row of new tokens, whether its text will be cut at a stop sequence it has said."""
        if not rows or not self._rules.stops:
            return [False] * len(rows)
        recent = self._lm.tokenizer.batch_decode([row[-self._window :] for row in rows])
        return [
            any(stop in text for stop in self._rules.stops)
            and any(stop in self._lm.tok_decode(row) for stop in self._rules.stops)
            for text, row in zip(recent, rows, strict=True)
        ]


def encode_prompt(lm: HarnessModel, prompt: str, rules: Rules) -> tuple[int, ...]:
    """The tokens of a prompt, cut on the left to leave room for the answer."""
    room = lm.max_length - rules.max_new_tokens
    if room <= 0:
        raise ValueError(
            f"max_gen_toks must be smaller than the model's maximum length {lm.max_length}, got {rules.max_new_tokens}."
        )
    tokens, _ = lm.tok_batch_encode([prompt], left_truncate_len=room, truncation=lm.truncation)
    return tuple(tokens[0].tolist())


def why_not_greedy(lm: HarnessModel, generation_kwargs: Mapping[str, Any]) -> str | None:
    """Why these generation arguments need the harness's own `generate`; None where plain greedy decoding does."""
    kwargs: dict[str, Any] = dict(normalize_gen_kwargs(dict(generation_kwargs), lm.max_gen_toks))
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
