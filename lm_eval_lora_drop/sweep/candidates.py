"""The candidates that a sweep compares: sets of variants by name, or a list in a file (docs/howto/other-candidates.md).

A set is a function from an adapter's shape to variants in their notation (`variant`). Full adapter and base model are
always among the candidates, so that every choice is held against both.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.options import CandidateSpec, LoraDropArgs
from lm_eval_lora_drop.statistics.alignment import by_importance
from lm_eval_lora_drop.text import did_you_mean, shown
from lm_eval_lora_drop.variant import AdapterShape, Variant, check_boundary, default_boundary, format_integers

GROUP = "lm_eval_lora_drop.candidates"
"""Entry points of other distributions: name -> a function as those of `CANDIDATES`."""
STRENGTHS = tuple(step / 8 for step in range(12, 0, -1))
"""1.5 to 0.125."""
SOFT = (0.25, 0.5, 0.75)
SLOPES = ((1.0, 0.0), (1.0, 0.25), (1.0, 0.5), (1.25, 0.75), (0.75, 1.25), (0.5, 1.0), (0.25, 1.0), (0.0, 1.0))
"""Strength at the lowest and at the highest layer, linear between (LiNeS, arXiv 2410.17146, in both directions)."""
ENERGIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Shares of a module's squared update."""
RANDOM_SETS = 16
GRID = 6
"""Into how many parts the depth is cut where every layer would give too many candidates."""
MOST = 40
"""Single layers that a set looks at; of a deeper model as many, evenly spread from the first to the last. Boundaries
alone keep every K: they are what is asked, and share their states best."""


@dataclass(frozen=True)
class CandidateSet:
    """The candidates of a sweep, from most kept to least: ties go to the one that stands first.

    `ordered` says that neighbours are alike, so that their scores may be smoothed.
    """

    name: str
    variants: tuple[Variant, ...]
    ordered: bool

    @property
    def full(self) -> Variant | None:
        """The full adapter, None where it is no candidate."""
        return next((one for one in self.variants if one.is_full), None)

    @property
    def base(self) -> Variant | None:
        """The base model, None where it is no candidate."""
        return next((one for one in self.variants if one.is_base), None)


def candidates_of(args: LoraDropArgs, shape: AdapterShape) -> CandidateSet:
    """What a sweep compares: `sweep_boundaries`, or what `sweep_candidates` says.

    Raises:
        ArgumentError: a candidate that the model does not have, or a set that this adapter has none of.
    """
    if "cma_es" in args.sweep_candidates.names and args.sweep_strategy == "racing":
        raise ArgumentError(
            "sweep_candidates=cma_es scores every candidate of a generation to the end, got sweep_strategy=racing. "
            "Leave sweep_strategy out."
        )
    if args.sweep_boundaries is None:
        return make_candidates(args.sweep_candidates, shape, seed=args.sweep_seed, size=args.sweep_size)
    try:
        return boundaries(args.sweep_boundaries, shape.num_layers)
    except ArgumentError as error:
        raise ArgumentError(f"sweep_boundaries: {error}") from None


def boundaries(values: Iterable[int], num_layers: int) -> CandidateSet:
    """The boundaries K of `values`, the largest first.

    Raises:
        ArgumentError: a boundary that the model does not have.
    """
    variants = tuple(Variant.below(value, num_layers) for value in sorted(set(values), reverse=True))
    return CandidateSet("boundary", variants, ordered=True)


def make_candidates(
    spec: CandidateSpec | Sequence[str], shape: AdapterShape, *, seed: int = 0, size: int | None = None
) -> CandidateSet:
    """The candidates of one set, of several together, or of a file (the latter two unordered); of every adapter, where
    there are several.

    Args:
        spec: names of sets, or the lines of a file.
        shape: of the adapter, or of all adapters together.
        seed: of the random sets.
        size: layers in a random set; the paper's default boundary where None.

    Raises:
        ArgumentError: no such set, one that this adapter has no candidates for, or a line that does not fit the model.
    """
    spec = spec if isinstance(spec, CandidateSpec) else CandidateSpec(tuple(spec))
    check_names(spec, size)
    names, count = spec.names, shape.num_layers
    if shape.adapters and (alone := [name for name in names if name in (*SEARCHED, "scores", "energy")]):
        raise ArgumentError(
            f"sweep_candidates={alone[0]} reads the layers of one adapter, got {', '.join(shape.adapters)}. Name "
            "one in peft."
        )
    listed = [variant for where, line in spec.lines for variant in _listed(where, line, shape)]
    named = [variant for name in names if not spec.lines for variant in _named(name, shape, seed, size)]
    ends = (Variant.full(count), *named, Variant.base(count))
    # The base model is the same below every adapter.
    found = {
        replace(variant, adapter="" if variant.is_base else adapter): None
        for adapter in shape.adapters or ("",)
        for variant in ends
    } | dict.fromkeys(listed)
    prefix = ["adapters"] if shape.adapters and "adapters" not in names and not spec.lines else []
    return CandidateSet(
        "+".join([*prefix, *names]),
        tuple(sorted(found, key=_kept, reverse=True)),
        ordered=len(names) == 1 and not shape.adapters and names[0] in ORDERED,
    )


def check_names(spec: CandidateSpec, size: int | None = None) -> None:
    """Refuse sets that do not exist or cannot be joined; `size` is what came as `sweep_size`.

    Raises:
        ArgumentError: there are some.
    """
    if not spec.lines:
        for name in spec.names:
            _function(name)
    if len(set(spec.names)) < len(spec.names):
        raise ArgumentError(f"sweep_candidates must name every set once, got {spec}: one is named twice.")
    if len(spec.names) > 1 and (alone := set(spec.names) & set(SEARCHED)):
        raise ArgumentError(
            f"sweep_candidates={min(alone)} searches in rounds and cannot be joined with another set, got {spec}. "
            "Sweep them in two runs."
        )
    if size is not None and not {"random", "cma_es"} & set(spec.names):
        raise ArgumentError(
            f"sweep_size is the size of the sets of random and the budget of cma_es, got sweep_size={size} and "
            f"sweep_candidates={spec}. Leave it out, or sweep one of these."
        )
    if "cma_es" in spec.names:
        try:
            import cmaes  # noqa: F401
        except ImportError:
            raise ArgumentError(
                "sweep_candidates=cma_es needs the package cmaes, which is not installed. Run pip install cmaes."
            ) from None


def _function(name: str) -> Callable[[AdapterShape], Iterable[str]]:
    if name in CANDIDATES:
        return CANDIDATES[name]
    further = {one.name: one for one in entry_points(group=GROUP)}
    if name in further:
        loaded: Any = further[name].load()
        return loaded
    raise ArgumentError(
        f"sweep_candidates must be one of {', '.join([*CANDIDATES, *further])}, joined by '+', or @FILE, got "
        f"{shown(name)!r}." + did_you_mean(name, [*CANDIDATES, *further], option="sweep_candidates")
    )


def _named(name: str, shape: AdapterShape, seed: int, size: int | None) -> Iterator[Variant]:
    texts = _random(shape, seed, size) if name == "random" else _function(name)(shape)
    return (Variant.parse(text, shape.num_layers) for text in texts)


def _listed(where: str, line: str, shape: AdapterShape) -> list[Variant]:
    """A line of a file: of the adapter that it names, else of each."""
    try:
        variant = Variant.parse(line, shape.num_layers)
        if variant.adapter and variant.adapter not in shape.adapters:
            raise ArgumentError(
                f"there is no adapter {variant.adapter} in peft, which has {', '.join(shape.adapters) or 'one alone'}. "
                "Leave the name out, or name one of these."
            )
    except ArgumentError as error:
        raise ArgumentError(f"{where}: {error}") from None
    if variant.is_base:
        return [Variant.base(shape.num_layers)]
    wanted = [variant.adapter] if variant.adapter else shape.adapters or ("",)
    return [replace(variant, adapter=adapter) for adapter in wanted]


def best_layers(scores: Mapping[str, Sequence[float]], candidates: CandidateSet) -> CandidateSet:
    """`candidates` with "keep the k best layers by a score" for every score and k on a grid; a tie goes to the lower
    layer.

    Args:
        scores: name -> one number per layer, higher says that the layer matters more.
        candidates: what is compared besides.
    """
    found: dict[Variant, None] = dict.fromkeys(candidates.variants)
    for values in scores.values():
        order = by_importance(values)
        found |= dict.fromkeys(Variant.of_layers(order[:size], len(values)) for size in _steps(len(values)))
    return replace(candidates, variants=tuple(sorted(found, key=_kept, reverse=True)), ordered=False)


def _kept(variant: Variant) -> float:
    """About how much is kept, for the order: layers by strength, a part of the kinds counting half."""
    return sum(
        min(keep.strength, 1.0) * (0.5 if keep.modules else 1.0) * (0.75 if keep.rank else 1.0)
        for keeps in variant.layers
        for keep in keeps
    )


def thin(values: Sequence[int], most: int) -> list[int]:
    """At most `most` of `values` (two or more), evenly spread, the first and the last among them."""
    last = len(values) - 1
    if len(values) <= most:
        return list(values)
    return [values[round(place * last / (most - 1))] for place in range(most)]


def blocks(num_layers: int) -> list[frozenset[int]]:
    """The layers in order, cut into neighbours that a greedy search moves together: each by itself up to `MOST` layers,
    else `MOST` blocks whose sizes differ by one at most."""
    count = min(num_layers, MOST)
    edges = [round(place * num_layers / count) for place in range(count + 1)]
    return [frozenset(range(low, high)) for low, high in itertools.pairwise(edges)]


def _steps(num_layers: int) -> list[int]:
    return sorted({round(num_layers * part / GRID) for part in range(GRID + 1)})


def _span(start: int, end: int, how: str = "") -> list[str]:
    """The layers start..end-1 as a range, or nothing."""
    return [f"{start}-{end - 1}{how}"] if end > start else []


def _join(*ranges: Iterable[str]) -> str:
    return "+".join(itertools.chain(*ranges)) or "none"


def _layers(kept: Iterable[int]) -> str:
    return format_integers(kept) or "none"


def _random(shape: AdapterShape, seed: int = 0, size: int | None = None) -> Iterator[str]:
    """Sets of `size` layers, and the boundary of that size beside them: is it the number of layers, or which?"""
    size = default_boundary(shape.num_layers) if size is None else size
    check_boundary(size, shape.num_layers)
    chance = random.Random(seed)
    yield _join(_span(0, size))
    for _ in range(RANDOM_SETS):
        yield _layers(chance.sample(range(shape.num_layers), size))


def _slope(shape: AdapterShape) -> Iterator[str]:
    last = max(shape.num_layers - 1, 1)
    for low, high in SLOPES:
        factors = [round(low + (high - low) * index / last, 6) for index in range(shape.num_layers)]
        yield _join(f"{index}x{factor}" for index, factor in enumerate(factors) if factor > 0)


def _modules(shape: AdapterShape) -> Iterator[str]:
    """Attention or MLP only, and each kind of module singly, in all layers and below two boundaries."""
    if not shape.modules:
        raise ArgumentError("sweep_candidates=modules needs an adapter whose kinds of module are known, got none.")
    kinds = ["attention", "mlp", *shape.modules] if len(shape.modules) > 1 else list(shape.modules)
    tops = dict.fromkeys(round(shape.num_layers * part / 3) for part in (3, 2, 1))
    for top, kind in itertools.product(tops, kinds):
        yield _join(_span(0, top, f".{kind}"))


def _rank(shape: AdapterShape) -> Iterator[str]:
    """Each product cut to its largest singular values, in all layers or above the middle."""
    if shape.rank < 2:
        raise ArgumentError(f"sweep_candidates=rank needs an adapter of rank 2 or more, got {shape.rank}.")
    for rank, start in itertools.product((512 >> power for power in range(10)), (0, shape.num_layers // 2)):
        if rank < shape.rank:
            yield _join(_span(0, start), _span(start, shape.num_layers, f"r{rank}"))


def _energy(shape: AdapterShape) -> Iterator[str]:
    """Every layer cut to the smallest rank at which each of its modules holds a share of its squared update."""
    if shape.spectra is None:
        raise ArgumentError(
            "sweep_candidates=energy reads singular values from the adapter's files, got none. Give peft=ADAPTER."
        )
    products = list(shape.spectra())
    whole = [
        max((len(squares) for at, squares in products if at == layer), default=0) for layer in range(shape.num_layers)
    ]
    for share in ENERGIES:
        ranks = [0] * shape.num_layers
        for layer, squares in products:
            # Rounding in the last digits of a sum must not ask for one more.
            needed = share * sum(squares) * (1 - 1e-12)
            held = itertools.accumulate(squares)
            ranks[layer] = max(ranks[layer], next(rank for rank, sum_ in enumerate(held, 1) if sum_ >= needed))
        yield _join(f"{layer}{f'r{r}' if r < whole[layer] else ''}" for layer, r in enumerate(ranks))


def _single(shape: AdapterShape) -> list[str]:
    """One kind of module in one layer, the layers evenly spread (one shallow projection: DomLoRA, arXiv 2605.06183)."""
    if not shape.modules:
        raise ArgumentError("sweep_candidates=single needs an adapter whose kinds of module are known, got none.")
    layers = thin(range(shape.num_layers), max(2, MOST // len(shape.modules)))
    found = [f"{layer}.{kind}" for layer, kind in itertools.product(layers, shape.modules)]
    return [found[place] for place in thin(range(len(found)), MOST)]


def _adapters(shape: AdapterShape) -> Iterator[str]:
    """Every adapter in full, and nothing else: which one, or which checkpoint."""
    if not shape.adapters:
        raise ArgumentError(
            "sweep_candidates=adapters compares several adapters, got one. Name them in peft, joined by '+', or a "
            "folder of checkpoints."
        )
    return iter(())


SEARCHED = ("greedy", "greedy_forward", "cma_es")
"""Searched in rounds, by themselves (sweep/strategies); here stands what their first round compares, or the like."""
ORDERED = ("boundary", "upper", "strength")
CANDIDATES: dict[str, Callable[[AdapterShape], Iterable[str]]] = {
    "boundary": lambda shape: [_join(_span(0, k)) for k in range(shape.num_layers + 1)],
    # The top layers from i on: the control that the paper lacks.
    "upper": lambda shape: [_join(_span(i, shape.num_layers)) for i in thin(range(shape.num_layers + 1), MOST + 1)],
    "window": lambda shape: [_join(_span(*ends)) for ends in itertools.combinations(_steps(shape.num_layers), 2)],
    "leave_one_out": lambda shape: [
        _join(_span(0, out), _span(out + 1, shape.num_layers)) for out in thin(range(shape.num_layers), MOST)
    ],
    "random": _random,
    # One factor on the full adapter.
    "strength": lambda shape: [_join(_span(0, shape.num_layers, f"x{strength}")) for strength in STRENGTHS],
    "slope": _slope,
    # A lower strength above a boundary in place of dropping.
    "soft": lambda shape: [
        _join(_span(0, k), _span(k, shape.num_layers, f"x{strength}"))
        for k, strength in itertools.product(_steps(shape.num_layers)[:-1], SOFT)
    ],
    "modules": _modules,
    "rank": _rank,
    "energy": _energy,
    "single": _single,
    "adapters": _adapters,
    # Found when the model is there, see `best_layers`.
    "scores": lambda _: (),
    "greedy": lambda shape: [_layers(set(range(shape.num_layers)) - block) for block in blocks(shape.num_layers)],
    # Strengths that differ from layer to layer, as its generations do.
    "cma_es": _slope,
    "greedy_forward": lambda shape: [_layers(block) for block in blocks(shape.num_layers)],
}
