"""What decides an adapter: the numbers of a training and the documents it may read; pure data."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.spec import parse_layers
from lm_eval_lora_drop.variant import Variant, format_integers

Precision = Literal["auto", "float32", "bfloat16"]
Long = Literal["cut", "skip"]
PAPER_LAYERS = "paper"
ALL_LAYERS = "all"


def paper_layers(num_layers: int) -> int:
    """How many bottom layers the paper's "Partial Fine-tuned" trains: 20 of 32, scaled, half rounded up (30: 19)."""
    return math.floor(20 / 32 * num_layers + 0.5)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The numbers of one training. Defaults are the paper's where it names them (arXiv 2503.23360: 3 epochs, rank 8,
    2,048 tokens, batch 16), else those of LLaMA-Factory's LoRA examples, with which the paper trained.

    `batch_size` is that of an optimiser step on all processes together; `micro_batch_size` goes through the model at a
    time (None: all of a process's share at once). `lora_alpha` None is twice the rank. `layers` is `all`, `paper` (its
    bottom 20 of 32, scaled) or the notation of a variant (`0-18`). `limit` is the number of documents, drawn with
    `data_seed`; `seed` is that of the initial weights, the order and dropout, so that seeds differ in nothing else.
    A document longer than `max_length` tokens loses the beginning of its prompt (`long` cut), or another one is drawn
    in its place (skip).
    `precision` auto is bfloat16 where the device computes in it, else float32; LoRA weights are float32 always.
    """

    rank: int = 8
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    layers: str = ALL_LAYERS
    target_modules: tuple[str, ...] = ()
    epochs: float = 3.0
    batch_size: int = 16
    micro_batch_size: int | None = None
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    warmup: float = 0.1
    schedule: str = "cosine"
    max_grad_norm: float = 1.0
    max_length: int = 2048
    long: Long = "cut"
    gradient_checkpointing: bool = False
    precision: Precision = "auto"
    seed: int = 0
    data_seed: int = 0
    limit: int | None = None
    hold_out: int = 200
    checkpoints: int = 10

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            self._check(one.name, not isinstance(value, float) or math.isfinite(value), "a finite number")
        if self.layers not in (ALL_LAYERS, PAPER_LAYERS):
            parse_layers(self.layers)
        self._check("rank", self.rank >= 1, "at least 1")
        self._check("lora_dropout", 0 <= self.lora_dropout < 1, "from 0 to below 1")
        self._check("epochs", self.epochs > 0, "above 0")
        self._check("batch_size", self.batch_size >= 1, "at least 1")
        self._check("micro_batch_size", self.micro_batch_size is None or self.micro_batch_size >= 1, "at least 1")
        self._check("learning_rate", self.learning_rate > 0, "above 0")
        self._check("weight_decay", self.weight_decay >= 0, "at least 0")
        self._check("warmup", 0 <= self.warmup < 1, "a share of all steps, from 0 to below 1")
        self._check("max_length", self.max_length >= 2, "at least 2 tokens")
        self._check("limit", self.limit is None or self.limit >= 1, "at least 1")
        self._check("hold_out", self.hold_out >= 0, "at least 0")
        self._check("checkpoints", self.checkpoints >= 1, "at least 1")
        self._check("long", self.long in get_args(Long), f"one of {', '.join(get_args(Long))}")
        self._check("precision", self.precision in get_args(Precision), f"one of {', '.join(get_args(Precision))}")

    def _check(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ArgumentError(f"{name} must be {rule}, got {getattr(self, name)!r}.")

    @property
    def alpha(self) -> float:
        """LoRA's alpha."""
        return 2.0 * self.rank if self.lora_alpha is None else self.lora_alpha

    def trained_layers(self, num_layers: int) -> tuple[int, ...]:
        """The decoder layers that get LoRA, ascending.

        Raises:
            ArgumentError: the model has no such layers, or `layers` says more than which ones.
        """
        if self.layers == ALL_LAYERS:
            return tuple(range(num_layers))
        if self.layers == PAPER_LAYERS:
            return tuple(range(paper_layers(num_layers)))
        kept = Variant.parse(self.layers, num_layers)
        if not kept.is_plain or kept.adapter or kept.is_base:
            raise ArgumentError(
                f"layers must name the decoder layers to train and nothing else, e.g. "
                f"0-{paper_layers(num_layers) - 1}, or be {ALL_LAYERS} or {PAPER_LAYERS}; got {self.layers!r}."
            )
        return tuple(sorted(kept.kept_layers))

    def describe_layers(self, num_layers: int) -> str:
        """For cards and tables: `all 30`, or `0-18 of 30`."""
        trained = self.trained_layers(num_layers)
        return f"all {num_layers}" if len(trained) == num_layers else f"{format_integers(trained)} of {num_layers}"


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """The task to train on, as `lm_eval` would be told: its name, where it and its data are, how it is asked."""

    task: str
    include_path: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    num_fewshot: int | None = None
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = False
    system_instruction: str | None = None


def read_settings(given: Mapping[str, Any], where: str = "") -> TrainingSettings:
    """Settings out of keys and values; `where` is the file that they stand in, for messages.

    Raises:
        ArgumentError: an unknown key, or a value of the wrong kind.
    """
    kinds: dict[str, tuple[type, ...]] = {
        "layers": (str,),
        "schedule": (str,),
        "precision": (str,),
        "long": (str,),
        "target_modules": (list, tuple),
        "gradient_checkpointing": (bool,),
        **dict.fromkeys(
            ("lora_alpha", "lora_dropout", "epochs", "learning_rate", "weight_decay", "warmup", "max_grad_norm"),
            (int, float),
        ),
    }
    defaults = {one.name: one.default for one in dataclasses.fields(TrainingSettings)}
    values: dict[str, Any] = {}
    before = f"{where}: " if where else ""
    for key, value in given.items():
        if key not in defaults:
            near = difflib.get_close_matches(str(key), list(defaults), n=1)
            hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(defaults)}."
            raise ArgumentError(f"{before}there is no setting {str(key)[:80]!r}. {hint}")
        if value is None and defaults[key] is None:
            continue
        # YAML reads 1e-4 as a text: its numbers want a dot.
        if float in kinds.get(key, ()) and isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = float(value)
        wanted = kinds.get(key, (int,))
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            names = " or ".join(kind.__name__ for kind in wanted)
            raise ArgumentError(f"{before}{key} must be of kind {names}, got {value!r}.")
        values[key] = tuple(value) if isinstance(value, list) else value
    try:
        return TrainingSettings(**values)
    except ArgumentError as error:
        raise ArgumentError(f"{before}{error}") from None
