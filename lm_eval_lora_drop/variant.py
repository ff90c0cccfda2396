"""What is kept of a LoRA adapter, as one hashable value with one notation; pure data.

Everything that chooses, runs, exports, compares or reports speaks of variants. A *boundary* K is the variant that keeps
the decoder layers 0..K-1 whole; tables print it as K.

Notation, safe as (part of) a file name:

    [ADAPTER@] RANGES                    RANGES = none | RANGE(+RANGE)*
    RANGE = FIRST[-LAST] [xSTRENGTH] [rRANK] [.MODULES]*

    0-14                 layers 0 to 14
    0-14+20              and layer 20
    0-19+20-29x0.5       the upper ten at half strength
    0-29r4               every product B A cut to its four largest singular values
    0-29.attention       attention modules only
    0-9.q_proj.v_proj    two kinds of module, by the last part of their names; a name has priority over attention, mlp
    seed1@0-14           of the adapter `seed1`
    none                 nothing: the base model
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.text import did_you_mean, quoted, shown

_RANGE = re.compile(
    r"(?P<first>\d{1,6})(?:-(?P<last>\d{1,6}))?"
    r"(?:x(?P<strength>\d{1,9}(?:\.\d{1,17})?(?:e-?\d{1,3})?))?"
    r"(?:r(?P<rank>\d{1,6}))?"
    r"(?P<modules>(?:\.[A-Za-z_][A-Za-z0-9_]*)*)"
)
_ADAPTER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
MOST_LAYERS = 100_000
"""No model has as many: a number above it is a slip, or damage."""
MOST_STRENGTH = 1000
"""Far above it the numbers of a model overflow, and its answers are empty."""
LONGEST = 10_000
"""Characters of a notation: a variant of 160 layers, each with modules and a strength of its own, takes 6,000."""
Word = Literal["auto", "probe", "default", "full", "base"]
BOUNDARY_WORDS: tuple[str, ...] = get_args(Word)
RULE = "layers and ranges joined by '+', each with xSTRENGTH, rRANK and .MODULES where wanted, e.g. 0-14+20-29x0.5.mlp"


@dataclass(frozen=True)
class AdapterShape:
    """What the candidates of a sweep depend on: decoder layers, kinds of module with LoRA (the last part of their
    names), the largest rank, and the names of the adapters where several are loaded.

    `spectra` reads the layer and the squared singular values, the largest first, of every LoRA product in the layers;
    None where the adapter has no files.
    """

    num_layers: int
    modules: tuple[str, ...] = ()
    rank: int = 0
    adapters: tuple[str, ...] = ()
    spectra: Callable[[], Iterable[tuple[int, Sequence[float]]]] | None = field(default=None, compare=False)


@dataclass(frozen=True, order=True)
class Keep:
    """How some modules of one decoder layer are kept.

    `modules` are the kinds kept, () for every kind: `attention`, `mlp`, or the last part of a module's name (`q_proj`).
    `strength` scales the LoRA (1 as trained), `rank` cuts each product B A to its largest singular values (None: all).
    """

    modules: tuple[str, ...] = ()
    strength: float = 1.0
    rank: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.strength <= MOST_STRENGTH:
            raise ArgumentError(
                f"a strength must be a number above 0 and at most {MOST_STRENGTH} (1 keeps the LoRA as trained), got "
                f"{self.strength}. To drop layers, leave them out."
            )
        if self.rank is not None and self.rank < 1:
            raise ArgumentError(f"a rank must be at least 1, got {self.rank}. To drop layers, leave them out.")

    @property
    def is_whole(self) -> bool:
        """Whether every module keeps its LoRA as trained."""
        return self == Keep()

    def __str__(self) -> str:
        # repr is the shortest text that reads back as the same number.
        strength = "" if self.strength == 1 else f"x{repr(self.strength).removesuffix('.0').replace('e+', 'e')}"
        rank = "" if self.rank is None else f"r{self.rank}"
        return strength + rank + "".join(f".{name}" for name in self.modules)


@dataclass(frozen=True)
class Variant:
    """What is kept of one adapter, layer by layer.

    `layers[i]` are the `Keep`s of decoder layer i, () where its LoRA is dropped; no kind of module stands in two of
    them. `adapter` names which of several loaded adapters is meant, "" the only one.

    What lies outside the layers follows its neighbour: LoRA on the input embedding goes with layer 0, that on the final
    norm and `lm_head` with layer L-1. For a boundary: embedding kept unless K = 0, head dropped unless K = L.
    """

    layers: tuple[tuple[Keep, ...], ...]
    adapter: str = ""

    def __post_init__(self) -> None:
        if self.adapter and not _ADAPTER.fullmatch(self.adapter):
            raise ArgumentError(
                f"an adapter's name must be letters, digits, '.', '_' and '-', got {self.adapter!r}. Rename it."
            )
        for index, keeps in enumerate(self.layers):
            kinds = [kind for keep in keeps for kind in keep.modules or ("",)]
            if len(kinds) != len(set(kinds)) or ("" in kinds and len(keeps) > 1):
                raise ArgumentError(f"layer {index} is named twice with the same kind of module. Name it once.")

    @classmethod
    def below(cls, boundary: int, num_layers: int, adapter: str = "") -> Variant:
        """The variant of a boundary K: layers 0..K-1.

        Raises:
            ArgumentError: K lies outside 0..L.
        """
        check_boundary(boundary, num_layers)
        return cls.of_layers(range(boundary), num_layers, adapter=adapter)

    @classmethod
    def full(cls, num_layers: int, adapter: str = "") -> Variant:
        """The full adapter (K = L)."""
        return cls.below(num_layers, num_layers, adapter)

    @classmethod
    def base(cls, num_layers: int, adapter: str = "") -> Variant:
        """The base model (K = 0)."""
        return cls.below(0, num_layers, adapter)

    @classmethod
    def of_layers(cls, kept: Iterable[int], num_layers: int, keep: Keep | None = None, adapter: str = "") -> Variant:
        """These layers, each kept as `keep` says (default: whole).

        Raises:
            ArgumentError: a layer that the model does not have.
        """
        wanted = set(kept)
        outside = sorted(index for index in wanted if not 0 <= index < num_layers)
        if outside:
            raise ArgumentError(
                f"layers must lie in 0..{num_layers - 1} (the model has {num_layers} decoder layers), got "
                f"{format_integers(outside)}. Name existing layers only."
            )
        here = (keep or Keep(),)
        return cls(tuple(here if index in wanted else () for index in range(num_layers)), adapter)

    @classmethod
    def parse(cls, text: str, num_layers: int) -> Variant:
        """Read the notation.

        Raises:
            ArgumentError: it is malformed, or names a layer that the model does not have.
        """
        # A damaged record must not take the memory of a thousand million layers.
        if not 0 <= num_layers <= MOST_LAYERS:
            raise ArgumentError(f"a model has at most {MOST_LAYERS:,} decoder layers, got {num_layers:.3g}.")
        adapter, _, ranges = text.rpartition("@")
        layers: list[list[Keep]] = [[] for _ in range(num_layers)]
        for first, last, keep in parse_ranges(ranges):
            if last >= num_layers:
                cls.of_layers((max(first, num_layers), last), num_layers)  # raises
            for index in range(first, last + 1):
                layers[index].append(keep)
        return cls(tuple(tuple(sorted(keeps)) for keeps in layers), adapter)

    @property
    def num_layers(self) -> int:
        """L, the number of decoder layers of the model."""
        return len(self.layers)

    @property
    def kept_layers(self) -> frozenset[int]:
        """The layers that keep any LoRA."""
        return frozenset(index for index, keeps in enumerate(self.layers) if keeps)

    @property
    def is_plain(self) -> bool:
        """Whether each layer is kept whole or dropped."""
        return all(keep.is_whole for keeps in self.layers for keep in keeps)

    @property
    def boundary(self) -> int | None:
        """K where the variant keeps exactly the layers 0..K-1, whole; else None."""
        size = len(self.kept_layers)
        return size if self.is_plain and self.kept_layers == frozenset(range(size)) else None

    @property
    def is_full(self) -> bool:
        """Whether it is the full adapter."""
        return self.boundary == self.num_layers

    @property
    def is_base(self) -> bool:
        """Whether it is the base model."""
        return not self.kept_layers

    @property
    def label(self) -> str:
        """How a table names it: `K = 20` for a boundary, else the notation."""
        boundary = self.boundary
        if boundary is None:
            return str(self)
        return f"{self.adapter} K = {boundary}".lstrip()

    def keep_at(self, layer: int, module: str, kinds: Iterable[str] = ()) -> Keep | None:
        """How a module of this layer is kept, None where it is dropped.

        `module` is the last part of its name, which has priority over `kinds`, what else it may be called (`attention`,
        `mlp`). For modules outside the layers: layer 0 for the embedding, layer L-1 for norm and head.
        """
        names = {module, *kinds}
        keeps = [keep for keep in self.layers[layer] if not keep.modules or names & set(keep.modules)]
        return max(keeps, key=lambda keep: module in keep.modules, default=None)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        # Variants are keys of large tables, and hashing some thirty layers anew at each look-up would show.
        return hash((self.layers, self.adapter))

    def __reduce__(self) -> tuple[Any, ...]:
        # The remembered hash must not travel: another process hashes strings differently.
        return Variant, (self.layers, self.adapter)

    def __repr__(self) -> str:
        return f"Variant({str(self)!r} of {self.num_layers})"

    def __str__(self) -> str:
        runs: list[tuple[int, int, Keep]] = []
        open_runs: dict[Keep, int] = {}
        for index, keeps in enumerate(self.layers):
            for keep in keeps:
                place = open_runs.get(keep)
                if place is not None and runs[place][1] == index - 1:
                    runs[place] = (runs[place][0], index, keep)
                else:
                    open_runs[keep] = len(runs)
                    runs.append((index, index, keep))
        text = "+".join(f"{a}{'' if a == b else f'-{b}'}{keep}" for a, b, keep in runs) or "none"
        return f"{self.adapter}@{text}" if self.adapter else text


@dataclass(frozen=True)
class VariantSpec:
    """What the user asked for, before the model is known.

    `kind` "given" carries `boundary` (K); "layers" carries `layers` (the notation of a variant); "recorded" carries
    `source`, another run's results file or folder, with `#TASK` where its task has another name; the words carry
    nothing.
    """

    kind: Literal["given", "layers", "recorded"] | Word
    boundary: int | None = None
    layers: str | None = None
    source: str | None = None

    @property
    def needs_validation(self) -> bool:
        """Whether validation documents decide."""
        return self.kind in ("auto", "probe")

    def resolve(self, num_layers: int) -> Variant | None:
        """The variant for a model with `num_layers` decoder layers, or None where validation documents or another run
        decide.

        Raises:
            ArgumentError: the boundary or a layer does not exist in such a model.
        """
        if self.layers is not None:
            return Variant.parse(self.layers, num_layers)
        known = {"given": self.boundary, "full": num_layers, "base": 0, "default": default_boundary(num_layers)}
        boundary = known.get(self.kind)
        return None if boundary is None else Variant.below(boundary, num_layers)

    def __str__(self) -> str:
        if self.kind == "layers":
            return f"layers={self.layers}"
        return f"boundary={f'@{self.source}' if self.source else self.kind if self.boundary is None else self.boundary}"


def parse_boundary(value: object) -> VariantSpec:
    """Read the `boundary` argument: an integer >= 0, one of `BOUNDARY_WORDS`, or `@` and another run's results.

    Raises:
        ArgumentError: anything else; a misspelt word is answered with the near match.
    """
    rule = (
        f"boundary must be an integer from 0 to the number of decoder layers, one of {', '.join(BOUNDARY_WORDS)}, or "
        "@ and the results of another run"
    )
    if isinstance(value, list | tuple):
        items = "+".join(map(shown, value[:20]))
        raise ArgumentError(f"{rule}, got a list of {len(value)}. For a set of layers write layers={items}.")
    text = shown(value, 4096)
    if re.fullmatch(r"[0-9]{1,6}", text) and not isinstance(value, bool):
        return VariantSpec("given", boundary=int(text))
    if re.fullmatch(r"-[0-9]{1,6}", text):
        raise ArgumentError(f"{rule}, got {text}. boundary=0 (or base) drops the LoRA of every layer.")
    if text.startswith("@"):
        if not text[1:].strip():
            raise ArgumentError("boundary=@PATH must name a results file or the folder of one run, got none.")
        return VariantSpec("recorded", source=text[1:].strip())
    if text.lower() in BOUNDARY_WORDS:
        return VariantSpec(text.lower())  # type: ignore[arg-type]
    came = quoted(value) if isinstance(value, float) else repr(shown(value))
    raise ArgumentError(f"{rule}, got {came}." + did_you_mean(text, BOUNDARY_WORDS, option="boundary"))


def parse_layers(value: object) -> VariantSpec:
    """Read the `layers` argument: the notation of a variant (`0-14+20`, `0-29x0.5`, `none`), or a list of indices.

    Raises:
        ArgumentError: empty or malformed.
    """
    if isinstance(value, list | tuple):
        value = "+".join(map(shown, value[:LONGEST])) or "none"
    text = shown(value, LONGEST)
    text = text.lower() if text.lower() == "none" else text
    top = max((last for _, last, _ in parse_ranges(text.rpartition("@")[2])), default=0)
    if top > MOST_LAYERS:
        raise ArgumentError(f"layers must name decoder layers, got {top}. Count them from 0.")
    return VariantSpec("layers", layers=text)


def parse_ranges(text: str) -> list[tuple[int, int, Keep]]:
    """The ranges of a variant's notation as (first layer, last layer, keep), the model not being known yet.

    Raises:
        ArgumentError: it is malformed.
    """
    if text.strip().lower() == "none":
        return []
    found = []
    for item in text.split("+"):
        match = _RANGE.fullmatch(item.strip())
        if not match:
            raise ArgumentError(f"layers must be {RULE}, got {text[:200]!r}.")
        first = int(match["first"])
        last = int(match["last"]) if match["last"] else first
        if last < first:
            raise ArgumentError(f"layers: a range runs upwards, e.g. 0-14, got {item!r} in {text[:200]!r}.")
        modules = tuple(sorted({name for name in match["modules"].split(".") if name}))
        strength = float(match["strength"]) if match["strength"] else 1.0
        rank = int(match["rank"]) if match["rank"] else None
        found.append((first, last, Keep(modules, strength, rank)))
    return found


def check_boundary(boundary: int, num_layers: int) -> None:
    """Raise ArgumentError unless 0 <= boundary <= num_layers."""
    if not 0 <= boundary <= num_layers:
        raise ArgumentError(
            f"boundary must be an integer from 0 to {num_layers} (the model has {num_layers} decoder layers; 0 drops "
            f"every layer's LoRA, {num_layers} drops none), got {boundary}."
        )


def default_boundary(num_layers: int) -> int:
    """The paper's fallback when there is no validation data: 15 of 32 layers, scaled to `num_layers`, half rounded up
    (16 layers: 7.5 gives 8; 48: 22.5 gives 23)."""
    return math.floor(15 / 32 * num_layers + 0.5)


def format_integers(values: Iterable[int]) -> str:
    """Ascending runs: `{0, 1, 2, 5}` gives `0-2+5`."""
    runs: list[list[int]] = []
    for value in sorted(set(values)):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return "+".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
