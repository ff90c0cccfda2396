"""Variants as numbers: what each does to each layer, and which of them have the same states up to a layer.

What layer i computes depends on the tokens, on what LoRA does in the layers up to i, and on nothing else. So the
variants of one document form a trie over the layers: two of them share a state in layer i for as long as they agree on
the layers 0..i. For the boundaries 0..L that is a trunk with one branch per layer; candidates that differ in layer 0
already share nothing (but are still computed in one batch).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lm_eval_lora_drop.variant import Keep, Variant

Indices = npt.NDArray[np.int64]

OFF = 0
"""The setting of a layer whose LoRA is dropped, whatever the adapter."""


class LayerSetting(NamedTuple):
    """What a setting keeps of which adapter in its layer, and for a tied head in layer 0."""

    adapter: str = ""
    keeps: tuple[Keep, ...] = ()
    first: tuple[Keep, ...] = ()


class Settings:
    """Numbers for variants and for *settings*: what a variant keeps of which adapter in one layer.

    With `tied` the head goes with the embedding, so a setting of the last layer says what is kept in layer 0 too.
    """

    def __init__(self, num_layers: int, *, tied: bool = False) -> None:
        self.num_layers = num_layers
        self.meanings: list[LayerSetting] = [LayerSetting()]
        """Setting -> what it means."""
        self._tied = tied
        self._variants: dict[Variant, int] = {}
        self._codes = np.zeros((0, num_layers), np.int64)
        self._sharing: dict[tuple[int, ...], Indices] = {}

    def numbers(self, variants: Sequence[Variant]) -> list[int]:
        """The number of each variant; the same for the same variant, from 0 on in the order of coming."""
        for variant in variants:
            if variant not in self._variants:
                self._variants[variant] = len(self._variants)
                ends = [()] * (self.num_layers - 1) + [variant.layers[0] if self._tied else ()]
                codes = [
                    self._code(LayerSetting(variant.adapter, *pair)) for pair in zip(variant.layers, ends, strict=True)
                ]
                self._codes = np.concatenate([self._codes, np.array([codes], np.int64)])
        return [self._variants[variant] for variant in variants]

    def at(self, variants: Indices, layer: int) -> Indices:
        """The settings of variants (numbers, (n,)) in a layer, (n,)."""
        return self._codes[variants, layer]

    def sharing(self, variants: Sequence[int]) -> Indices:
        """(variants, layers): the first in the list whose state in this layer is also that of the variant.

        For the boundaries (2, 1, 0) of two layers (A: 2, B: 1, C: 0) the settings are on/on, on/off, off/off, so B
        shares layer 0 with A and nothing else is shared: [[0, 0], [0, 1], [2, 2]].
        """
        key = tuple(variants)
        if key not in self._sharing:
            codes = self._codes[list(key)]
            first = np.zeros_like(codes)
            prefix = np.zeros(len(key), np.int64)
            for layer in range(self.num_layers):
                # One integer for (state before, setting here): there are fewer settings than len(meanings).
                pairs = prefix * len(self.meanings) + codes[:, layer]
                _, index, inverse = np.unique(pairs, return_index=True, return_inverse=True)
                prefix = first[:, layer] = index[inverse]
            self._sharing[key] = first
        return self._sharing[key]

    def _code(self, meaning: LayerSetting) -> int:
        if not meaning.keeps and not meaning.first:
            return OFF
        if meaning not in self.meanings:
            self.meanings.append(meaning)
        return self.meanings.index(meaning)
