"""The candidates that a sweep compares, family by family."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lm_eval_lora_drop.variant import Variant


@dataclass(frozen=True)
class Family:
    """The candidates of a sweep, from most kept to least: ties go to the one that stands first.

    `ordered` says that neighbours are alike, so that their scores may be smoothed.
    """

    name: str
    variants: tuple[Variant, ...]
    ordered: bool

    @property
    def full(self) -> Variant | None:
        """The whole adapter, None where it is no candidate."""
        return next((one for one in self.variants if one.is_full), None)

    @property
    def base(self) -> Variant | None:
        """The base model, None where it is no candidate."""
        return next((one for one in self.variants if one.is_base), None)


def boundaries(values: Iterable[int], num_layers: int) -> Family:
    """The boundaries K of `values`, the largest first.

    Raises:
        ArgumentError: a boundary that the model does not have.
    """
    ordered = sorted(set(values), reverse=True)
    return Family("boundary", tuple(Variant.below(value, num_layers) for value in ordered), ordered=True)
