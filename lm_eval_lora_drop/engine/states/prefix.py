"""What all prompts begin with, read once under every variant: few-shot examples, a system prompt, an instruction.

The states of a `Tree` after the common tokens depend on the variant alone, not on the document. So they are computed
once, as those of a document that has no more than these tokens, and every prompt continues from copies of their keys
and values.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import DynamicCache

from lm_eval_lora_drop.engine.states.branching import Branches, forward
from lm_eval_lora_drop.engine.states.settings import Indices, Settings
from lm_eval_lora_drop.engine.states.tree import Tree
from lm_eval_lora_drop.engine.states.upload import packed
from lm_eval_lora_drop.harness.model import HarnessModel
from lm_eval_lora_drop.variant import Variant

LEAST_TOKENS = 32
"""Shorter prefixes are read with each prompt: copying takes time too, and a small forward is slow."""
COPIES = 4
"""How many times the tokens to be read, at most, a batch may hold together with the copies of the prefix."""


def weight(length: int, known: int) -> float:
    """What a prompt of `length` tokens counts in a batch, in tokens, when copies stand for its first `known`."""
    return max(length - known, length / COPIES)


def common_prefix(prompts: Collection[tuple[int, ...]], at_most: int) -> tuple[int, ...]:
    """The tokens with which all prompts begin, up to `at_most`; none where that is not worth it."""
    if len(prompts) < 2:
        return ()
    # In alphabetical order, what the first and the last share, all share.
    first, last = min(prompts), max(prompts)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    tokens = first[: min(same, at_most)]
    return tokens if len(tokens) >= LEAST_TOKENS else ()


class Prefix:
    """Tokens that have been read under some variants (no repeats), and their keys and values."""

    @torch.inference_mode()
    def __init__(
        self,
        lm: HarnessModel,
        tokens: Sequence[int],
        variants: Sequence[Variant],
        settings: Settings,
        branches: Branches | None,
    ) -> None:
        self.length = len(tokens)
        self._tree = Tree(settings, len(variants))
        rows = self._tree.add(variants)
        self._tree.settle()
        # (variants known to `settings`,): the row that has read the tokens under it.
        numbers = settings.numbers(variants)
        self._row_of = np.zeros(max(numbers) + 1, np.int64)
        self._row_of[numbers] = rows
        self._states = DynamicCache()
        route = self._tree.route(rows)
        # (states of layer 0, length)
        inputs = torch.tensor([tokens], device=lm.device).expand(len(route.inputs), -1)
        forward(lm, branches, route, input_ids=inputs, cache=self._states, use_cache=True, logits_to_keep=1)

    def cache(self, tree: Tree, begins: Indices | None = None) -> DynamicCache:
        """A cache of `length` columns for the states of `tree`, each a copy of the prefix's state.

        `begins` (rows of the tree,) says in which column each row's prompt begins (None: in the first). What then does
        not fit in on the right is left out; before it are copies of its first token, for a mask to hide.
        """
        cache = DynamicCache()
        owners = [tree.owners(index) for index in range(tree.num_layers)]
        # (states,) of each layer: the slot in the prefix's tree of the state under the same variant.
        slots = [self._tree.slot[self._row_of[tree.variant[own]], index] for index, own in enumerate(owners)]
        begun = [begins[own] for own in owners] if begins is not None and begins.any() else []
        uploads = packed([*slots, *begun])
        layers: list[Any] = list(self._states.layers)
        for index, known in enumerate(layers):
            keys, values = known.keys, known.values
            places, *begin = (one.on(keys.device) for one in uploads[index :: len(slots)])
            if begin:
                # (states, length): column c of a state that begins in column b gets the prefix's token c - b.
                columns = (torch.arange(self.length, device=keys.device) - begin[0][:, None]).clamp(min=0)
                # (slots, heads, length, size) -> (slots, length, heads, size), indexed by (state, token), and back.
                keys, values = (
                    states.transpose(1, 2)[places[:, None], columns].transpose(1, 2) for states in (keys, values)
                )
            else:
                keys, values = keys[places], values[places]
            cache.update(keys, values, index)
        return cache
