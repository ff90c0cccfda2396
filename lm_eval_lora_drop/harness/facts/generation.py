"""How lm-eval reads a request's generation arguments, and where it cuts the text of an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

MAX_GEN_TOKS = 256
"""New tokens where neither task nor model names a limit."""


def generation_arguments(given: Mapping[str, Any], max_gen_toks: int = MAX_GEN_TOKS) -> dict[str, Any]:
    """The arguments as every model class of lm-eval reads them: `until` a list, `do_sample` and `max_gen_toks` set.

    `max_gen_toks` is the model's own limit, for requests that name none.
    """
    return dict(normalize_gen_kwargs(dict(given), max_gen_toks))


def stop_sequences(until: Sequence[str], end_of_text: str) -> tuple[str, ...]:
    """The stop sequences of a request, the end-of-text string among them."""
    return tuple(handle_stop_sequences(list(until), eos=end_of_text))


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first stop sequence."""
    return str(postprocess_generated_text(text, list(stops), None))
