"""Lengths at which a model changes what it does: below and above them one batch, or one cache, gives other answers.

Two kinds make a request one for the plain pass by itself, once prompt and answer can be longer (`own_batch_lengths`):

    rotary embeddings that change with the length (longrope, dynamic NTK): Transformers takes the longest row of a
    batch, and the keys in a cache keep the frequencies of their time
    what a model's own `prepare_inputs_for_generation` compares the length with: Phi-3 throws its cache away at
    `original_max_position_embeddings`. Of those in Transformers only Phi-3, Phi-4 multimodal and PhiMoE use a
    length; the others decide which inputs a forward gets, which the check before trust compares

Any other length in the configuration (a window, a chunk, the number of positions) is one that the check must see
crossed where requests cross it (`lengths`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import GenerationMixin

from lm_eval_lora_drop.harness.model import HarnessModel

_SAME_AT_ANY_LENGTH = {"default", "linear", "yarn", "llama3", "proportional", "mrope"}
"""Kinds of rotary embeddings whose frequencies are fixed; what is not known is taken for one that changes."""
_LENGTH = re.compile(r"position|length|window|chunk|context|ctx|seq")


def own_batch_lengths(lm: HarnessModel) -> frozenset[int]:
    """Numbers of tokens beyond which a request needs a batch, and a cache, of its own."""
    config, base = lm.model.config.get_text_config(decoder=True), lm.model.get_base_model()
    found = set()
    for rope in _ropes(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)):
        if rope.get("rope_type", rope.get("type", "default")) not in _SAME_AT_ANY_LENGTH:
            # Longrope has the first, dynamic NTK starts from the second.
            known = rope.get("original_max_position_embeddings")
            known = known or getattr(config, "original_max_position_embeddings", None)
            found.add(known or config.max_position_embeddings)
    usual = GenerationMixin.prepare_inputs_for_generation
    prepare = inspect.unwrap(getattr(type(base), "prepare_inputs_for_generation", usual))
    if prepare is not inspect.unwrap(usual):
        found.update(lengths(lm, prepare.__code__.co_names))
    return frozenset(found)


def lengths(lm: HarnessModel, names: tuple[str, ...] | None = None) -> frozenset[int]:
    """The values in the model's configuration that are lengths by their names; of these `names` where given."""
    config = lm.model.config.get_text_config(decoder=True)
    known = config.to_dict() if names is None else {name: getattr(config, name, None) for name in names}
    return frozenset(
        value for name, value in known.items() if type(value) is int and value > 0 and _LENGTH.search(name)
    )


def _ropes(parameters: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """The parameters of each kind of layer, where they differ by it."""
    if parameters:
        nested = [one for one in parameters.values() if isinstance(one, Mapping)]
        yield from nested or [parameters]
