"""What a user may write for `boundary`, `layers` and `sweep_boundaries`, parsed and checked; pure data.

A *boundary* K is the number of bottom decoder layers that keep their LoRA: layers 0..K-1 keep it, K..L-1 lose it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lm_eval_lora_drop.errors import ArgumentError

BOUNDARY_WORDS = ("auto", "probe", "default", "full", "base")
_ITEM = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")


@dataclass(frozen=True)
class LayerSet:
    """The decoder layers that keep their LoRA, out of `num_layers`.

    What lies outside the layers follows its neighbour: the input embedding goes with layer 0, the final norm and
    `lm_head` go with layer L-1. For a boundary that says: embedding kept unless K = 0, head dropped unless K = L.
    """

    layers: frozenset[int]
    num_layers: int

    def __post_init__(self) -> None:
        outside = sorted(i for i in self.layers if not 0 <= i < self.num_layers)
        if outside:
            raise ArgumentError(
                f"layers must lie in 0..{self.num_layers - 1} (the model has {self.num_layers} decoder layers), got "
                f"{format_integers(outside)}. Name existing layers only."
            )

    @classmethod
    def below(cls, boundary: int, num_layers: int) -> LayerSet:
        """The set of a boundary K: layers 0..K-1.

        Raises:
            ArgumentError: K lies outside 0..L.
        """
        check_boundary(boundary, num_layers)
        return cls(frozenset(range(boundary)), num_layers)

    @property
    def boundary(self) -> int | None:
        """K when the set is 0..K-1, else None."""
        size = len(self.layers)
        return size if self.layers == frozenset(range(size)) else None

    @property
    def keeps_embedding(self) -> bool:
        """Whether LoRA on the input embedding stays."""
        return 0 in self.layers

    @property
    def keeps_head(self) -> bool:
        """Whether LoRA on the final norm and on `lm_head` stays."""
        return self.num_layers - 1 in self.layers

    @property
    def spec(self) -> str:
        """The set in the notation of the `layers` argument, e.g. `0-14+20`; `none` for the empty set."""
        return format_integers(self.layers) or "none"


@dataclass(frozen=True)
class BoundarySpec:
    """What the user asked for, before the model is known.

    `kind` "given" carries `value` (K); "layers" carries `layers`; the words carry nothing.
    """

    kind: Literal["given", "layers", "auto", "probe", "default", "full", "base"]
    value: int | None = None
    layers: frozenset[int] | None = None

    @property
    def needs_validation(self) -> bool:
        """Whether validation documents decide K."""
        return self.kind in ("auto", "probe")

    def resolve(self, num_layers: int) -> LayerSet | None:
        """The layer set for a model with `num_layers` decoder layers, or None where validation documents decide.

        Raises:
            ArgumentError: the boundary or a layer does not exist in such a model.
        """
        match self.kind:
            case "given":
                assert self.value is not None
                return LayerSet.below(self.value, num_layers)
            case "layers":
                assert self.layers is not None
                return LayerSet(self.layers, num_layers)
            case "full":
                return LayerSet.below(num_layers, num_layers)
            case "base":
                return LayerSet.below(0, num_layers)
            case "default":
                return LayerSet.below(default_boundary(num_layers), num_layers)
        return None

    def __str__(self) -> str:
        if self.kind == "given":
            return f"boundary={self.value}"
        if self.kind == "layers":
            return f"layers={format_integers(self.layers or ())}"
        return f"boundary={self.kind}"


def default_boundary(num_layers: int) -> int:
    """The paper's fallback when there is no validation data: 15 of 32 layers, scaled to `num_layers`."""
    return round(15 / 32 * num_layers)


def check_boundary(boundary: int, num_layers: int) -> None:
    """Raise ArgumentError unless 0 <= boundary <= num_layers."""
    if not 0 <= boundary <= num_layers:
        raise ArgumentError(
            f"boundary must be an integer from 0 to {num_layers} (the model has {num_layers} decoder layers; 0 drops "
            f"every layer's LoRA, {num_layers} drops none), got {boundary}."
        )


def parse_boundary(value: object) -> BoundarySpec:
    """Read the `boundary` argument: an integer >= 0 or one of `BOUNDARY_WORDS`.

    Raises:
        ArgumentError: anything else; a misspelt word is answered with the near match.
    """
    rule = f"boundary must be an integer from 0 to the number of decoder layers, or one of {', '.join(BOUNDARY_WORDS)}"
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise ArgumentError(f"{rule}, got {value}. boundary=0 (or base) drops the LoRA of every layer.")
        return BoundarySpec("given", value=value)
    text = str(value).strip()
    if text.isdecimal():
        return BoundarySpec("given", value=int(text))
    word = text.lower()
    for kind in BOUNDARY_WORDS:
        if word == kind:
            return BoundarySpec(kind)  # type: ignore[arg-type]
    near = difflib.get_close_matches(word, BOUNDARY_WORDS, n=1)
    raise ArgumentError(f"{rule}, got {value!r}." + (f" Did you mean boundary={near[0]}?" if near else ""))


def parse_layers(value: object) -> BoundarySpec:
    """Read the `layers` argument: layer indices and ranges joined by `+`, e.g. `0-14+20`, or `none`.

    Raises:
        ArgumentError: empty or malformed.
    """
    if str(value).strip().lower() == "none":
        return BoundarySpec("layers", layers=frozenset())
    return BoundarySpec("layers", layers=frozenset(parse_integers("layers", value, example="0-14+20")))


def parse_sweep_boundaries(value: object) -> tuple[int, ...]:
    """Read the `sweep_boundaries` argument: `0-32`, `8-24:2` (every second), `4+8+12`; ascending, without repeats.

    Raises:
        ArgumentError: empty or malformed.
    """
    return parse_integers("sweep_boundaries", value, example="0-32, 8-24:2 or 4+8+12")


def parse_integers(name: str, value: object, *, example: str) -> tuple[int, ...]:
    """Integers and ranges (`a-b`, `a-b:step`) joined by `+`, ascending and without repeats.

    Raises:
        ArgumentError: naming the argument `name`, what came, and an example of what is allowed.
    """
    # Both ends are included: a user who writes 0-14 names layer 14. The comma is taken: it separates model_args.
    items = [item.strip() for item in str(value).split("+")]
    found: set[int] = set()
    for item in items:
        match = _ITEM.fullmatch(item)
        if not match:
            raise ArgumentError(f"{name} must be integers and ranges joined by '+', e.g. {example}, got {value!r}.")
        start = int(match[1])
        stop = int(match[2]) if match[2] else start
        step = int(match[3]) if match[3] else 1
        if stop < start or step < 1:
            raise ArgumentError(
                f"{name}: a range runs upwards in steps of at least 1, e.g. {example}, got {item!r} in {value!r}."
            )
        found.update(range(start, stop + 1, step))
    return tuple(sorted(found))


def format_integers(values: Iterable[int]) -> str:
    """The shortest text that `parse_integers` reads back: `{0, 1, 2, 5}` gives `0-2+5`."""
    runs: list[list[int]] = []
    for value in sorted(set(values)):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return "+".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
