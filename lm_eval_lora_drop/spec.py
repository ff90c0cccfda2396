"""What a user may write for `boundary`, `layers` and `sweep_boundaries`, parsed and checked before a model is known."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal, get_args

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.variant import MOST_LAYERS, Variant, default_boundary, parse_ranges

Word = Literal["auto", "probe", "default", "full", "base"]
BOUNDARY_WORDS: tuple[str, ...] = get_args(Word)
MOST = MOST_LAYERS
LONGEST = 10_000
"""Characters of a notation: a variant of 160 layers, each with modules and a strength of its own, takes 6,000."""
_ITEM = re.compile(r"([0-9]{1,12})(?:-([0-9]{1,12})(?::([0-9]{1,12}))?)?")


def as_integer(value: object) -> object:
    """`20.0` as 20: the harness and JSON make numbers of what stood there before we see it; all else as it came."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 10**15 else value


def shown(value: object, most: int = 80) -> str:
    """A value as a message quotes it: not longer than that, on one line."""
    # An integer of thousands of digits cannot even be printed.
    if isinstance(value, int) and abs(value) >= 10**18:
        return "a number of more than 18 digits"
    try:
        text = " ".join(str(value).split())
    except (ValueError, RecursionError):  # digits or brackets by the thousand inside a list
        return f"a {type(value).__name__} that cannot be printed"
    return text if len(text) <= most else f"{text[:most]}..."


@dataclass(frozen=True)
class VariantSpec:
    """What the user asked for, before the model is known.

    `kind` "given" carries `boundary` (K); "layers" carries `layers` (the notation of a variant); "recorded" carries
    `source`, another run's results file or folder, with `#TASK` where its task has another name; the words carry
    nothing.
    """

    kind: Literal["given", "layers", "recorded", "auto", "probe", "default", "full", "base"]
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
        match self.kind:
            case "given":
                assert self.boundary is not None
                return Variant.below(self.boundary, num_layers)
            case "layers":
                assert self.layers is not None
                return Variant.parse(self.layers, num_layers)
            case "full":
                return Variant.full(num_layers)
            case "base":
                return Variant.base(num_layers)
            case "default":
                return Variant.below(default_boundary(num_layers), num_layers)
        return None

    def __str__(self) -> str:
        if self.kind == "given":
            return f"boundary={self.boundary}"
        if self.kind == "layers":
            return f"layers={self.layers}"
        if self.kind == "recorded":
            return f"boundary=@{self.source}"
        return f"boundary={self.kind}"


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
        items = [shown(as_integer(item)) for item in value[:20]]
        raise ArgumentError(f"{rule}, got a list of {len(value)}. For a set of layers write layers={'+'.join(items)}.")
    text = shown(as_integer(value))
    if re.fullmatch(r"[0-9]{1,6}", text) and not isinstance(value, bool):
        return VariantSpec("given", boundary=int(text))
    if re.fullmatch(r"-[0-9]{1,6}", text):
        raise ArgumentError(f"{rule}, got {text}. boundary=0 (or base) drops the LoRA of every layer.")
    if text.startswith("@"):
        if not text[1:].strip():
            raise ArgumentError("boundary=@PATH must name a results file or the folder of one run, got none.")
        return VariantSpec("recorded", source=text[1:].strip())
    word = text.lower()
    if word in BOUNDARY_WORDS:
        return VariantSpec(word)  # type: ignore[arg-type]
    near = difflib.get_close_matches(word[:40], BOUNDARY_WORDS, n=1)
    raise ArgumentError(
        f"{rule}, got {text if isinstance(value, float) else repr(text)}."
        + (f" Did you mean boundary={near[0]}?" if near else "")
    )


def parse_layers(value: object) -> VariantSpec:
    """Read the `layers` argument: the notation of a variant (`0-14+20`, `0-29x0.5`, `none`), or a list of indices.

    Raises:
        ArgumentError: empty or malformed.
    """
    if isinstance(value, list | tuple):
        value = "+".join(shown(as_integer(item)) for item in value[:LONGEST]) or "none"
    text = shown(as_integer(value), LONGEST)
    text = text.lower() if text.lower() == "none" else text
    ranges = parse_ranges(text.rpartition("@")[2])
    top = max((last for _, last, _ in ranges), default=0)
    if top > MOST:
        raise ArgumentError(f"layers must name decoder layers, got {top}. Count them from 0.")
    return VariantSpec("layers", layers=text)


def parse_sweep_boundaries(value: object) -> tuple[int, ...]:
    """Read the `sweep_boundaries` argument: `0-32`, `8-24:2` (every second), `4+8+12`; ascending, without repeats.

    Raises:
        ArgumentError: empty or malformed.
    """
    example = "0-32, 8-24:2 or 4+8+12"
    # Both ends are included: a user who writes 0-14 names layer 14. The comma is taken: it separates model_args.
    items = list(value) if isinstance(value, list | tuple) else shown(as_integer(value), MOST).split("+")
    if len(items) > MOST:
        raise ArgumentError(
            f"sweep_boundaries must name boundaries of the model, got {len(items):,}, more than any has."
        )
    found: set[int] = set()
    for item in items:
        match = _ITEM.fullmatch(shown(as_integer(item)))
        if not match:
            raise ArgumentError(
                f"sweep_boundaries must be integers and ranges joined by '+', e.g. {example}, got {shown(value)!r}."
            )
        start = int(match[1])
        stop = int(match[2]) if match[2] else start
        step = int(match[3]) if match[3] else 1
        if stop < start or step < 1:
            raise ArgumentError(
                f"sweep_boundaries: a range runs upwards in steps of at least 1, e.g. {example}, got {shown(item)!r}."
            )
        if stop > MOST:
            raise ArgumentError(f"sweep_boundaries must be boundaries of the model, got {stop}, more than any has.")
        found.update(range(start, stop + 1, step))
    return tuple(sorted(found))
