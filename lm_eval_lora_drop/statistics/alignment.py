"""How alike two representations of the same texts are, and which layers change theirs most."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from lm_eval_lora_drop.errors import ArgumentError

Floats = NDArray[np.float64]


def linear_cka(one: Floats, other: Floats) -> float:
    """Linear centred kernel alignment of two representations of the same `n` inputs, `(n, d)` and `(n, e)`: 1 where one
    is a rotation and scaling of the other; NaN where one is constant.

    HSIC of the linear kernels by its Gram matrices, n x n (Kornblith et al., 2019, Similarity of Neural Network
    Representations Revisited, equation 3 with the biased estimator).
    """
    grams = []
    for states in (one, other):
        centred = states - states.mean(axis=0)
        grams.append(centred @ centred.T)
    first, second = grams
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / scale if scale else float("nan")


def cka_pretrained(states: Iterable[tuple[Floats, Floats]]) -> Floats:
    """`(L,)`: 1 - linear CKA of the hidden states before and behind each layer of the pretrained model, `(n, d)` each.

    The layer that changes its states most is taken for the most important (arXiv 2602.05988). Prompts often end with
    one token, whose embedding is the same in all: of what distinguishes the texts behind such a layer nothing was there
    before, which counts as 1. NaN where the states behind are the same too.

    Raises:
        ArgumentError: fewer than three texts. Two centred points lie on a line, so that their CKA is always 1.
    """
    pairs = list(states)
    if (count := len(pairs[0][0])) < 3:
        raise ArgumentError(f"cka compares hidden states over at least 3 documents, got {count}. Raise the limit.")
    fresh = [np.ptp(before, axis=0).max() == 0 < np.ptp(behind, axis=0).max() for before, behind in pairs]
    return np.array([1.0 if new else 1 - linear_cka(*pair) for new, pair in zip(fresh, pairs, strict=True)])


def by_importance(scores: Sequence[float] | Floats) -> list[int]:
    """The layers, the most important first; of equals the lower one, and those without a score last."""
    return sorted(range(len(scores)), key=lambda layer: -scores[layer] if np.isfinite(scores[layer]) else np.inf)
