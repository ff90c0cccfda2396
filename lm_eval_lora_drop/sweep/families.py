"""The candidates that a sweep compares, family by family (docs/families.md).

A family is pure arithmetic on the number of layers, the kinds of module the adapter has LoRA on, and its rank; whole
adapter and base model are always among the candidates, so that every choice is held against both.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness.work import AdapterShape
from lm_eval_lora_drop.variant import Keep, Variant, check_boundary, default_boundary

STRENGTHS = tuple(step / 8 for step in range(1, 13))
"""0.125 to 1.5."""
SOFT = (0.25, 0.5, 0.75)
SLOPES = ((1.0, 0.0), (1.0, 0.25), (1.0, 0.5), (1.25, 0.75), (0.75, 1.25), (0.5, 1.0), (0.25, 1.0), (0.0, 1.0))
"""Strength at the lowest and at the highest layer, linear between (LiNeS, arXiv 2410.17146, in both directions)."""
RANDOM_SETS = 16
GRID = 6
"""Into how many parts the depth is cut where every layer would give too many candidates."""
MOST = 40
"""Single layers that a family looks at; of a deeper model as many, evenly spread from the first to the last. Boundaries
alone keep every K: they are what is asked, and share their states best."""


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
    for value in ordered:
        check_boundary(value, num_layers)
    return Family("boundary", tuple(Variant.below(value, num_layers) for value in ordered), ordered=True)


def make_family(names: Sequence[str], shape: AdapterShape, *, seed: int = 0, size: int | None = None) -> Family:
    """The candidates of one family, or of several together (then unordered); of every adapter, where there are several.

    Args:
        names: of `FAMILIES`.
        seed: of the random sets.
        size: layers in a random set; the paper's default boundary where None.

    Raises:
        ArgumentError: no such family, or one that this adapter has no candidates for.
    """
    if shape.adapters and set(names) & {*GREEDY, "scores"}:
        raise ArgumentError(
            f"sweep_family={'+'.join(names)} searches the layers of one adapter, got {', '.join(shape.adapters)}. Name "
            "one in peft."
        )
    found: dict[Variant, None] = {}
    adapters = shape.adapters or ("",)
    for name in names:
        if name not in FAMILIES:
            raise ArgumentError(f"sweep_family must be one of {', '.join(FAMILIES)}, joined by '+', got {name!r}.")
        if name == "random":
            chosen = default_boundary(shape.num_layers) if size is None else size
            check_boundary(chosen, shape.num_layers)
            found |= dict.fromkeys(_random(shape, chosen, seed))
        else:
            found |= dict.fromkeys(FAMILIES[name](shape))
    ends = (Variant.full(shape.num_layers), *found, Variant.base(shape.num_layers))
    # The base model is the same below every adapter.
    all_of_them = {
        replace(variant, adapter="" if variant.is_base else adapter): None for adapter in adapters for variant in ends
    }
    variants = sorted(all_of_them, key=_kept, reverse=True)
    single = names[0] if len(names) == 1 and len(adapters) == 1 else ""
    prefix = ["adapters"] if shape.adapters and "adapters" not in names else []
    name = "+".join([*prefix, *names])
    return Family(name, tuple(variants), ordered=single in ("boundary", "upper", "strength"))


def best_layers(scores: Mapping[str, Sequence[float]], family: Family) -> Family:
    """`family` with "keep the k best layers by a score" for every score and k on a grid; a tie goes to the lower layer.

    Args:
        scores: name -> one number per layer, higher says that the layer matters more.
    """
    found: dict[Variant, None] = dict.fromkeys(family.variants)
    for values in scores.values():
        order = sorted(
            range(len(values)), key=lambda layer: -values[layer] if math.isfinite(values[layer]) else math.inf
        )
        found |= dict.fromkeys(Variant.of_layers(order[:size], len(values)) for size in _steps(len(values)))
    return replace(family, variants=tuple(sorted(found, key=_kept, reverse=True)), ordered=False)


def _kept(variant: Variant) -> float:
    """About how much is kept, for the order: layers by strength, a part of the kinds counting half."""
    return sum(
        min(keep.strength, 1.0) * (0.5 if keep.modules else 1.0) * (0.75 if keep.rank else 1.0)
        for keeps in variant.layers
        for keep in keeps
    )


def _boundary(shape: AdapterShape) -> list[Variant]:
    return [Variant.below(k, shape.num_layers) for k in range(shape.num_layers, -1, -1)]


def _upper(shape: AdapterShape) -> list[Variant]:
    """The top layers from i on: the control that the paper lacks."""
    starts = thin(range(shape.num_layers + 1), MOST + 1)
    return [Variant.of_layers(range(i, shape.num_layers), shape.num_layers) for i in starts]


def thin(values: Sequence[int], most: int) -> list[int]:
    """At most `most` of `values` (two or more), evenly spread, the first and the last among them."""
    last = len(values) - 1
    if len(values) <= most:
        return list(values)
    return [values[round(place * last / (most - 1))] for place in range(most)]


def blocks(num_layers: int) -> list[frozenset[int]]:
    """The layers in order, cut into neighbours that a greedy search moves together: each by itself up to `MOST` layers,
    else so many blocks whose sizes differ by one at most."""
    count = min(num_layers, MOST)
    edges = [round(place * num_layers / count) for place in range(count + 1)]
    return [frozenset(range(low, high)) for low, high in itertools.pairwise(edges)]


def _greedy(shape: AdapterShape) -> list[Variant]:
    layers = frozenset(range(shape.num_layers))
    return [Variant.of_layers(layers - block, shape.num_layers) for block in blocks(shape.num_layers)]


def _greedy_forward(shape: AdapterShape) -> list[Variant]:
    return [Variant.of_layers(block, shape.num_layers) for block in blocks(shape.num_layers)]


def _steps(num_layers: int) -> list[int]:
    return sorted({round(num_layers * part / GRID) for part in range(GRID + 1)})


def _window(shape: AdapterShape) -> list[Variant]:
    """[start, end), both on a grid."""
    pairs = itertools.combinations(_steps(shape.num_layers), 2)
    return [Variant.of_layers(range(start, end), shape.num_layers) for start, end in pairs]


def _leave_one_out(shape: AdapterShape) -> list[Variant]:
    layers = range(shape.num_layers)
    return [Variant.of_layers((i for i in layers if i != out), shape.num_layers) for out in thin(layers, MOST)]


def _random(shape: AdapterShape, size: int, seed: int) -> list[Variant]:
    """Sets of `size` layers, and the boundary of that size beside them: is it the number of layers, or which?"""
    chance = random.Random(seed)
    sets = [chance.sample(range(shape.num_layers), size) for _ in range(RANDOM_SETS)]
    return [Variant.below(size, shape.num_layers), *(Variant.of_layers(one, shape.num_layers) for one in sets)]


def _strength(shape: AdapterShape) -> list[Variant]:
    """One factor on the whole adapter, 0 (base) to 1.5."""
    everything = range(shape.num_layers)
    return [
        Variant.of_layers(everything, shape.num_layers, Keep(strength=strength)) for strength in reversed(STRENGTHS)
    ]


def _slope(shape: AdapterShape) -> list[Variant]:
    last = max(shape.num_layers - 1, 1)
    found = []
    for low, high in SLOPES:
        factors = [round(low + (high - low) * index / last, 6) for index in range(shape.num_layers)]
        found.append(Variant(tuple((Keep(strength=factor),) if factor > 0 else () for factor in factors)))
    return found


def _soft(shape: AdapterShape) -> list[Variant]:
    """A lower strength above a boundary in place of dropping."""
    found = []
    for boundary, strength in itertools.product(_steps(shape.num_layers)[:-1], SOFT):
        above = (Keep(strength=strength),)
        found.append(Variant(tuple((Keep(),) if index < boundary else above for index in range(shape.num_layers))))
    return found


def _modules(shape: AdapterShape) -> list[Variant]:
    """Attention or MLP only, and each kind of module singly, in all layers and below two boundaries."""
    if not shape.modules:
        raise ArgumentError("sweep_family=modules needs an adapter whose kinds of module are known, got none.")
    kinds = ["attention", "mlp", *shape.modules] if len(shape.modules) > 1 else list(shape.modules)
    tops = sorted({shape.num_layers, round(shape.num_layers * 2 / 3), round(shape.num_layers / 3)}, reverse=True)
    return [
        Variant.of_layers(range(top), shape.num_layers, Keep(modules=(kind,)))
        for top, kind in itertools.product(tops, kinds)
    ]


def _rank(shape: AdapterShape) -> list[Variant]:
    """Each product cut to its largest singular values, in all layers or above the middle."""
    if shape.rank < 2:
        raise ArgumentError(f"sweep_family=rank needs an adapter of rank 2 or more, got {shape.rank}.")
    ranks = [2**power for power in range(10) if 2**power < shape.rank]
    middle = shape.num_layers // 2
    found = []
    for rank in reversed(ranks):
        cut = (Keep(rank=rank),)
        found.append(Variant((cut,) * shape.num_layers))
        found.append(Variant(tuple((Keep(),) if index < middle else cut for index in range(shape.num_layers))))
    return found


def _adapters(shape: AdapterShape) -> list[Variant]:
    """The whole of every adapter, and nothing else: which one, or which checkpoint."""
    if not shape.adapters:
        raise ArgumentError(
            "sweep_family=adapters compares several adapters, got one. Name them in peft, joined by '+', or a folder "
            "of checkpoints."
        )
    return []


GREEDY = ("greedy", "greedy_forward")
"""Searched in rounds, by themselves."""
FAMILIES: dict[str, Callable[[AdapterShape], list[Variant]]] = {
    "boundary": _boundary,
    "upper": _upper,
    "window": _window,
    "leave_one_out": _leave_one_out,
    "random": lambda shape: _random(shape, default_boundary(shape.num_layers), 0),
    "strength": _strength,
    "slope": _slope,
    "soft": _soft,
    "modules": _modules,
    "rank": _rank,
    "adapters": _adapters,
    # Found when the model is there, see `best_layers`.
    "scores": lambda _: [],
    # What their first round compares (sweeping/beyond/greedy.py).
    "greedy": _greedy,
    "greedy_forward": _greedy_forward,
}
