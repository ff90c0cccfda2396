"""What all prompts begin with, read once under every boundary: few-shot examples, a system prompt, an instruction.

The states of a `Tree` after the common tokens depend on the boundary alone, not on the document. So they are computed
once, as those of a document that has no more than these tokens, and every prompt goes on from copies of their keys and
values.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import DynamicCache

from lm_eval_lora_drop.engine.branching import Branches, forward
from lm_eval_lora_drop.engine.tree import Indices, Tree

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
    """Tokens that have been read under some boundaries (falling, without repeats), and their keys and values."""

    @torch.inference_mode()
    def __init__(self, lm: Any, tokens: Sequence[int], boundaries: Sequence[int], branches: Branches | None) -> None:
        num_layers = lm.model.config.get_text_config(decoder=True).num_hidden_layers
        self.length = len(tokens)
        self._tree = Tree(num_layers, len(boundaries))
        rows = self._tree.add(boundaries)
        self._row_of = np.zeros(num_layers + 1, np.int64)
        self._row_of[list(boundaries)] = rows
        self._states = DynamicCache()
        route = self._tree.route(rows, lm.device)
        inputs = torch.tensor([tokens], device=lm.device).expand(len(route.inputs), -1)
        forward(lm, branches, route, input_ids=inputs, past_key_values=self._states, use_cache=True, logits_to_keep=1)

    def cache(self, tree: Tree, begins: Indices | None = None) -> DynamicCache:
        """A cache of `length` columns for the states of `tree`, each a copy of the prefix's state.

        `begins` says for each row of the tree in which column its prompt begins (None: in the first). What then does
        not fit in on the right is left out; before it are copies of its first token, for a mask to hide.
        """
        cache = DynamicCache()
        for index in range(tree.num_layers):
            known: Any = self._states.layers[index]
            device = known.keys.device
            owners = tree.owners(index)
            places = torch.from_numpy(self._tree.places(self._row_of[tree.boundary[owners]], index)).to(device)
            if begins is None or not begins[owners].any():
                keys, values = known.keys[places], known.values[places]
            else:
                columns = np.arange(self.length) - begins[owners][:, None]
                moved = torch.from_numpy(columns.clip(min=0)).to(device)
                keys, values = (
                    states.transpose(1, 2)[places[:, None], moved].transpose(1, 2)
                    for states in (known.keys, known.values)
                )
            cache.update(keys, values, index)
        return cache
