"""A set of candidates: the even layers, and the odd ones."""

from collections.abc import Iterator

from lm_eval_lora_drop.variant import AdapterShape


def even_and_odd(shape: AdapterShape) -> Iterator[str]:
    for first in (0, 1):
        yield "+".join(map(str, range(first, shape.num_layers, 2)))
