"""The model_args that are ours, parsed and checked before anything is loaded. Backend-free."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import user_path
from lm_eval_lora_drop.harness.work import AdapterShape
from lm_eval_lora_drop.show.listeners.trackers import SWEEP_LOGS
from lm_eval_lora_drop.spec import (
    LONGEST,
    VariantSpec,
    as_integer,
    parse_boundary,
    parse_layers,
    parse_sweep_boundaries,
    shown,
)
from lm_eval_lora_drop.sweep.families import FAMILIES, GREEDY, Family, boundaries, make_family
from lm_eval_lora_drop.sweep.select import SELECTIONS
from lm_eval_lora_drop.sweep.tradeoffs.also import AlsoSpec, parse_also
from lm_eval_lora_drop.sweep.tradeoffs.bounds import NOTATION, parse_bounded
from lm_eval_lora_drop.sweep.tradeoffs.jointly import HOW

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
    sweep_task: str | None = None
    sweep_metric: str | None = None
    sweep_strategy: str = "exhaustive"
    sweep_select: str | None = None
    sweep_jointly: str | None = None
    sweep_seed: int = 0
    sweep_engine: str = "auto"
    sweep_batch_size: int | None = None
    sweep_dir: Path | None = None
    sweep_log: str = "auto"
    sweep_dry_run: bool = False
    merge: bool | Literal["force"] = False

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
        _refuse_unknown(rest, set(known))
        _refuse_for_the_backend(rest)
        if "boundary" in ours and "layers" in ours:
            raise ArgumentError(
                f"boundary and layers exclude each other, got boundary={shown(ours['boundary'])} and "
                f"layers={shown(ours['layers'])}. "
                "Give boundary=K to keep the layers 0..K-1, or layers=... to keep an arbitrary set."
            )
        spec = parse_layers(ours["layers"]) if "layers" in ours else parse_boundary(ours.get("boundary", "auto"))
        given = ours.get("sweep_boundaries")
        metric, other = ours.get("sweep_metric"), ours.get("sweep_task")
        folder = ours.get("sweep_dir")
        families = ours.get("sweep_family", "boundary")
        if given is not None and families != "boundary":
            raise ArgumentError(
                f"sweep_boundaries names candidates of the family boundary, got sweep_family={shown(families)} beside "
                "it. Leave one of them out."
            )
        dry = _truth("sweep_dry_run", ours.get("sweep_dry_run", False))
        if dry and spec.kind != "auto":
            raise ArgumentError(
                f"sweep_dry_run=true says what a sweep would take, and only boundary=auto sweeps; got {spec}."
            )
        size, select = ours.get("sweep_size"), ours.get("sweep_select")
        return cls(
            spec=spec,
            sweep_family=parse_families(families, size),
            sweep_size=None if size is None else _integer("sweep_size", size, minimum=0),
            sweep_boundaries=None if given is None else parse_sweep_boundaries(given),
            sweep_also=() if ours.get("sweep_also") is None else parse_also(ours["sweep_also"]),
            sweep_limit=_integer("sweep_limit", ours.get("sweep_limit", 100), minimum=1),
            sweep_task=None if other is None else _text("sweep_task", other),
            # The comma that separates metric and filter also separates model_args, so a colon is taken for it.
            sweep_metric=None if metric is None else _text("sweep_metric", metric).replace(":", ",", 1),
            sweep_strategy=_word("sweep_strategy", ours.get("sweep_strategy", "exhaustive"), STRATEGIES),
            sweep_select=None if select is None else _select(select),
            sweep_jointly=_jointly(ours.get("sweep_jointly", False)),
            sweep_seed=_integer("sweep_seed", ours.get("sweep_seed", 0), minimum=0),
            sweep_engine=_word("sweep_engine", ours.get("sweep_engine", "auto"), ENGINES),
            sweep_batch_size=None
            if ours.get("sweep_batch_size", "auto") == "auto"
            else _integer("sweep_batch_size", ours["sweep_batch_size"], minimum=1, also=" or auto"),
            sweep_dir=None if folder is None else user_path(_text("sweep_dir", folder), "sweep_dir"),
            sweep_log=_word("sweep_log", ours.get("sweep_log", "auto"), SWEEP_LOGS),
            sweep_dry_run=dry,
            merge="force" if ours.get("merge") == "force" else _truth("merge", ours.get("merge", False)),
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


_OTHER_WORDS = {
    "boundary": ("k", "boundary_layer", "lora_boundary", "boundary_k", "cut", "num_kept", "bottom_k", "keep_bottom"),
    "layers": ("layer", "keep", "kept", "keep_layers", "kept_layers", "lora_layers", "layer_set"),
    "sweep_limit": ("limit", "n", "num_docs", "num_documents", "documents", "validation_limit", "validation_size"),
    "sweep_metric": ("metric", "metrics", "optimize", "optimise"),
    "sweep_boundaries": ("boundaries", "candidates", "ks", "sweep"),
    "sweep_family": ("family", "families"),
    "sweep_size": ("size",),
    "sweep_strategy": ("strategy", "racing"),
    "sweep_select": ("select", "selection", "one_se"),
    "sweep_jointly": ("jointly", "joint", "sweep_joint", "together"),
    "sweep_seed": ("seed",),
    "sweep_engine": ("engine",),
    "sweep_dir": ("dir", "output_dir", "journal"),
    "sweep_log": ("log", "wandb", "trackio"),
    "merge": ("merged", "merge_lora"),
    "peft": (
        *(
            "adapter",
            "adapters",
            "adapter_path",
            "adapter_name",
            "adapter_dir",
            "adapter_model",
            "adapter_name_or_path",
        ),
        *("lora", "lora_path", "lora_adapter", "lora_model", "lora_name", "lora_dir", "lora_weights"),
        *("peft_path", "peft_model", "peft_model_id", "peft_adapter", "peft_name"),
    ),
    "pretrained": (
        *("model", "model_name", "model_path", "model_id", "model_name_or_path", "pretrained_model", "checkpoint"),
        *("base", "base_model", "basemodel", "base_model_name_or_path", "pretrained_model_name_or_path"),
    ),
}
"""What people write for our arguments, and for those of the harness that ours need."""
_MEANT = {word: name for name, words in _OTHER_WORDS.items() for word in words}
_DTYPES = ("auto", "bfloat16", "float16", "float32", "float64", "half", "float", "double")


def check_names(model_args: Mapping[str, Any]) -> None:
    """Refuse model_args that name no base model or no adapter.

    Raises:
        ArgumentError: `pretrained` or the adapter is missing.
    """
    example = "Give --model_args pretrained=<base model>,peft=<adapter>"
    # False and 0 are how the harness reads pretrained=False: a value that names nothing.
    for name, what, instead in (
        ("pretrained", "the base model", ""),
        (
            "peft",
            "the LoRA adapter whose layers are to be kept or dropped",
            ", or use --model hf for a model without one",
        ),
    ):
        value = model_args.get(name) or (model_args.get("lora_local_path") if name == "peft" else None)
        if not value:
            raise ArgumentError(f"{name} must name {what} (a folder or a Hub id), got none. {example}{instead}.")
        if "\0" in shown(value, LONGEST):
            raise ArgumentError(f"{name} must name a folder or a Hub id, got a text with a NUL character. Retype it.")


def without_effect(model_args: Mapping[str, Any], args: LoraDropArgs) -> tuple[str, ...]:
    """The arguments of a sweep that were given where nothing is swept."""
    if args.spec.needs_validation:
        return ()
    # Where things lie and how fast they run may stand in every command of a series.
    passing = ("sweep_dir", "sweep_log", "sweep_engine", "sweep_batch_size", "sweep_seed")
    return tuple(name for name in model_args if name.startswith("sweep_") and name not in passing)


def _refuse_unknown(rest: Mapping[str, Any], known: set[str]) -> None:
    for name, value in rest.items():
        if name in known:
            continue
        word = str(name).strip().lower().replace("-", "_")
        came = f"model_args has no argument {shown(name)!r} (got {shown(name)}={shown(value)})."
        if word in _MEANT:
            raise ArgumentError(f"{came} Did you mean {_MEANT[word]}?")
        near = difflib.get_close_matches(word[:40], [*ARGUMENTS, *sorted(known)], n=1, cutoff=0.8)
        if near or word.startswith("sweep_"):
            raise ArgumentError(
                came + (f" Did you mean {near[0]}?" if near else f" There are: {', '.join(ARGUMENTS)}.")
            )
        if value == "":
            # What is left of `sweep_metric=name,filter` after the harness has split the text at its commas.
            raise ArgumentError(
                f"model_args: {shown(name)!r} came without a value. A comma separates model_args; to name the filter "
                f"of a metric, write sweep_metric=<metric>:<filter>."
            )


def _refuse_for_the_backend(rest: Mapping[str, Any]) -> None:
    """What the harness's own class would fail on, minutes later and in its own words."""
    if rest.get("backend") == "seq2seq":
        raise ArgumentError(
            "backend must be default or causal, got seq2seq, which loads an encoder-decoder model: boundaries count "
            "the layers of a decoder-only model. Leave backend out, or evaluate with --model hf."
        )
    dtype = rest.get("dtype", "auto")
    if isinstance(dtype, str | int | float) and str(shown(dtype)).removeprefix("torch.") not in _DTYPES:
        _word("dtype", shown(dtype), _DTYPES)
    given = rest.get("batch_size")
    batch = "1" if given is None else shown(as_integer(given))
    if not re.fullmatch(r"auto(:[0-9]+(\.[0-9]+)?)?|[1-9][0-9]{0,8}", batch):
        raise ArgumentError(f"batch_size must be an integer of at least 1, auto or auto:N, got {batch}.")


def parse_families(value: Any, size: Any = None) -> tuple[str, ...]:
    """The families of candidates that `sweep_family` names, joined by `+`; `size` is what came as `sweep_size`.

    Raises:
        ArgumentError: no such family, or families that cannot be joined.
    """
    names = tuple(_word("sweep_family", name.strip(), tuple(FAMILIES)) for name in shown(value, 1000).split("+"))
    if len(set(names)) < len(names):
        raise ArgumentError(f"sweep_family must name every family once, got {value}: one is named twice.")
    if len(names) > 1 and (alone := set(names) & set(GREEDY)):
        raise ArgumentError(
            f"sweep_family={min(alone)} searches in rounds and cannot be joined with another family, got {value}. "
            "Sweep them in two runs."
        )
    if size is not None and "random" not in names:
        raise ArgumentError(
            f"sweep_size is the size of the sets of the family random, got sweep_size={_quoted(size)} and "
            f"sweep_family={value}. Leave it out, or sweep that family too."
        )
    return names


def _integer(name: str, value: Any, *, minimum: int, also: str = "") -> int:
    text = shown(as_integer(value))
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,15}", text) or int(text) < minimum:
        raise ArgumentError(f"{name} must be an integer of at least {minimum}{also}, got {_quoted(value)}.")
    return int(text)


def _select(value: Any) -> str:
    """A rule of choice; with bounds as it was typed."""
    if isinstance(value, str) and parse_bounded(value) is not None:
        return _text("sweep_select", value)
    try:
        return _word("sweep_select", value, SELECTIONS)
    except ArgumentError as error:
        raise ArgumentError(f"{error} With bounds: {NOTATION}.") from None


def _jointly(value: Any) -> str | None:
    if isinstance(value, bool):
        return HOW[0] if value else None
    if value in HOW:
        return str(value)
    raise ArgumentError(f"sweep_jointly must be true (the mean), {', '.join(HOW)} or false, got {_quoted(value)}.")


def _word(name: str, value: Any, words: tuple[str, ...]) -> str:
    if value not in words:
        near = difflib.get_close_matches(shown(value), words, n=1)
        hint = f" Did you mean {name}={near[0]}?" if near else ""
        raise ArgumentError(f"{name} must be one of {', '.join(words)}, got {_quoted(value)}.{hint}")
    return str(value)


def _text(name: str, value: Any) -> str:
    text = shown(value, 4096)
    if not text or "\0" in text:
        raise ArgumentError(f"{name} must not be empty" + (" and has no NUL character." if text else "."))
    return text


def _truth(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ArgumentError(f"{name} must be true or false, got {_quoted(value)}.")


def _quoted(value: Any) -> str:
    return repr(shown(value)) if isinstance(value, str) else shown(as_integer(value))
