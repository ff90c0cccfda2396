"""The model_args that are ours, parsed and checked before anything is loaded. Backend-free."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.listeners.trackers import SWEEP_LOGS
from lm_eval_lora_drop.spec import VariantSpec, parse_boundary, parse_layers, parse_sweep_boundaries
from lm_eval_lora_drop.sweeping.beyond.also import AlsoSpec, parse_also
from lm_eval_lora_drop.sweeping.families import FAMILIES, GREEDY, Family, boundaries, make_family
from lm_eval_lora_drop.sweeping.select import SELECTIONS
from lm_eval_lora_drop.work import AdapterShape

STRATEGIES = ("exhaustive", "racing")
ENGINES = ("auto", "shared", "plain")


@dataclass(frozen=True)
class LoraDropArgs:
    """What the user wrote, one field per model_arg; `boundary` and `layers` have become one `spec`."""

    spec: VariantSpec
    sweep_family: tuple[str, ...] = ("boundary",)
    sweep_boundaries: tuple[int, ...] | None = None
    sweep_size: int | None = None
    sweep_also: tuple[AlsoSpec, ...] = ()
    sweep_limit: int = 100
    sweep_metric: str | None = None
    sweep_strategy: str = "exhaustive"
    sweep_select: str | None = None
    sweep_seed: int = 0
    sweep_engine: str = "auto"
    sweep_batch_size: int | None = None
    sweep_dir: Path | None = None
    sweep_log: str = "auto"
    merge: bool = False

    @classmethod
    def take(cls, model_args: Mapping[str, Any], known: Iterable[str]) -> tuple[LoraDropArgs, dict[str, Any]]:
        """Our arguments, and those that are left for the backend.

        `known` are the names the backend itself declares: a name that is neither ours nor among them is refused when
        it looks like a misspelt one of ours; any other goes on to `from_pretrained`, as with `--model hf`.

        Raises:
            ArgumentError: a value that is not allowed, a misspelt name, `boundary` together with `layers`.
        """
        rest = dict(model_args)
        ours = {name: rest.pop(name) for name in ARGUMENTS if name in rest}
        _refuse_misspelt(rest, set(known))
        if "boundary" in ours and "layers" in ours:
            raise ArgumentError(
                f"boundary and layers exclude each other, got boundary={ours['boundary']} and layers={ours['layers']}. "
                "Give boundary=K to keep the layers 0..K-1, or layers=... to keep an arbitrary set."
            )
        spec = parse_layers(ours["layers"]) if "layers" in ours else parse_boundary(ours.get("boundary", "auto"))
        given = ours.get("sweep_boundaries")
        metric = ours.get("sweep_metric")
        folder = ours.get("sweep_dir")
        families = ours.get("sweep_family", "boundary")
        if given is not None and families != "boundary":
            raise ArgumentError(
                f"sweep_boundaries names candidates of the family boundary, got sweep_family={families} beside it. "
                "Leave one of them out."
            )
        size, select = ours.get("sweep_size"), ours.get("sweep_select")
        return cls(
            spec=spec,
            sweep_family=_families(families, size),
            sweep_size=None if size is None else _integer("sweep_size", size, minimum=0),
            sweep_boundaries=None if given is None else parse_sweep_boundaries(given),
            sweep_also=() if ours.get("sweep_also") is None else parse_also(ours["sweep_also"]),
            sweep_limit=_integer("sweep_limit", ours.get("sweep_limit", 100), minimum=1),
            # The comma that separates metric and filter also separates model_args, so a colon is taken for it.
            sweep_metric=None if metric is None else _text("sweep_metric", metric).replace(":", ",", 1),
            sweep_strategy=_word("sweep_strategy", ours.get("sweep_strategy", "exhaustive"), STRATEGIES),
            sweep_select=None if select is None else _word("sweep_select", select, SELECTIONS),
            sweep_seed=_integer("sweep_seed", ours.get("sweep_seed", 0), minimum=0),
            sweep_engine=_word("sweep_engine", ours.get("sweep_engine", "auto"), ENGINES),
            sweep_batch_size=None
            if ours.get("sweep_batch_size", "auto") == "auto"
            else _integer("sweep_batch_size", ours["sweep_batch_size"], minimum=1, also=" or auto"),
            sweep_dir=None if folder is None else Path(_text("sweep_dir", folder)).expanduser(),
            sweep_log=_word("sweep_log", ours.get("sweep_log", "auto"), SWEEP_LOGS),
            merge=_truth("merge", ours.get("merge", False)),
        ), rest

    def candidates(self, shape: AdapterShape) -> Family:
        """What a sweep compares: `sweep_boundaries`, or every candidate of `sweep_family`.

        Raises:
            ArgumentError: a candidate that the model does not have, or a family that this adapter has none of.
        """
        if self.sweep_boundaries is None:
            return make_family(self.sweep_family, shape, seed=self.sweep_seed, size=self.sweep_size)
        try:
            return boundaries(self.sweep_boundaries, shape.num_layers)
        except ArgumentError as error:
            raise ArgumentError(f"sweep_boundaries: {error}") from None


ARGUMENTS = ("boundary", "layers", *(field.name for field in fields(LoraDropArgs) if field.name != "spec"))


def _refuse_misspelt(rest: Mapping[str, Any], known: set[str]) -> None:
    for name, value in rest.items():
        if name in known:
            continue
        near = difflib.get_close_matches(name, ARGUMENTS, n=1, cutoff=0.8)
        if near or name.startswith("sweep_"):
            hint = f" Did you mean {near[0]}?" if near else f" There are: {', '.join(ARGUMENTS)}."
            raise ArgumentError(f"model_args has no argument {name!r} (got {name}={value}).{hint}")
        if value == "":
            # What is left of `sweep_metric=name,filter` after the harness has split the text at its commas.
            raise ArgumentError(
                f"model_args: {name!r} came without a value. A comma separates model_args; to name the filter of a "
                f"metric, write sweep_metric=<metric>:<filter>."
            )


def _families(value: Any, size: Any) -> tuple[str, ...]:
    names = tuple(_word("sweep_family", name.strip(), tuple(FAMILIES)) for name in str(value).split("+"))
    if len(set(names)) < len(names):
        raise ArgumentError(f"sweep_family must name every family once, got {value}: one is named twice.")
    if len(names) > 1 and (alone := set(names) & set(GREEDY)):
        raise ArgumentError(
            f"sweep_family={min(alone)} searches in rounds and cannot be joined with another family, got {value}. Sweep "
            "them in two runs."
        )
    if size is not None and "random" not in names:
        raise ArgumentError(
            f"sweep_size is the size of the sets of the family random, got sweep_size={size} and sweep_family={value}. "
            "Leave it out, or sweep that family too."
        )
    return names


def _integer(name: str, value: Any, *, minimum: int, also: str = "") -> int:
    text = str(value).strip()
    if isinstance(value, bool) or not text.isdecimal() or int(text) < minimum:
        raise ArgumentError(f"{name} must be an integer of at least {minimum}{also}, got {value!r}.")
    return int(text)


def _word(name: str, value: Any, words: tuple[str, ...]) -> str:
    if value not in words:
        near = difflib.get_close_matches(str(value), words, n=1)
        hint = f" Did you mean {name}={near[0]}?" if near else ""
        raise ArgumentError(f"{name} must be one of {', '.join(words)}, got {value!r}.{hint}")
    return str(value)


def _text(name: str, value: Any) -> str:
    text = str(value).strip()
    if not text:
        raise ArgumentError(f"{name} must not be empty.")
    return text


def _truth(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ArgumentError(f"{name} must be true or false, got {value!r}.")
