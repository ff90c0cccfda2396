"""What decides an adapter: the numbers of a training (declared in `options`) and the documents it may read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.options import ALL_LAYERS, CKA_LAYERS, PAPER_LAYERS, TrainingOptions, read
from lm_eval_lora_drop.variant import Variant, format_integers


def paper_layers(num_layers: int) -> int:
    """How many bottom layers the paper's "Partial Fine-tuned" trains: 20 of 32, scaled, half rounded up (30: 19)."""
    return math.floor(20 / 32 * num_layers + 0.5)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(TrainingOptions):
    """The options of one training, checked, and what follows from them for a model.

    `seed` and `data_seed` are two, so that trainings of several seeds differ in nothing but initial weights, order and
    dropout. `precision` auto is bfloat16 where the device computes in it, else float32.
    """

    def __post_init__(self) -> None:
        read(vars(self), TrainingOptions)

    @property
    def alpha(self) -> float:
        """LoRA's alpha."""
        return 2.0 * self.rank if self.lora_alpha is None else self.lora_alpha

    @property
    def cka_share(self) -> float | None:
        """The share of the layers that is trained where `layers` is cka:SHARE, else None."""
        return float(self.layers.removeprefix(CKA_LAYERS)) if self.layers.startswith(CKA_LAYERS) else None

    def resolved(self, by_importance: Sequence[int]) -> TrainingSettings:
        """The same with the layers that cka:SHARE stands for (at least one), given all layers of the model, the most
        important first."""
        if self.cka_share is None:
            return self
        count = max(1, math.floor(self.cka_share * len(by_importance) + 0.5))
        return replace(self, layers=format_integers(by_importance[:count]))

    def trained_layers(self, num_layers: int) -> tuple[int, ...]:
        """The decoder layers that get LoRA, ascending.

        Raises:
            ArgumentError: the model has no such layers, or `layers` says more than which ones.
        """
        if self.cka_share is not None:
            raise ValueError("which layers cka names is known when the base model is loaded: see `resolved`")
        if self.layers == ALL_LAYERS:
            return tuple(range(num_layers))
        if self.layers == PAPER_LAYERS:
            return tuple(range(paper_layers(num_layers)))
        kept = Variant.parse(self.layers, num_layers)
        if not kept.is_plain or kept.adapter or kept.is_base:
            raise ArgumentError(
                "layers must name the decoder layers to train and nothing else, e.g. "
                f"0-{paper_layers(num_layers) - 1}, or be {ALL_LAYERS}, {PAPER_LAYERS} or {CKA_LAYERS}SHARE; got "
                f"{self.layers!r}."
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
        ArgumentError: an unknown key, or a value that is not allowed.
    """
    return TrainingSettings(**read(given, TrainingOptions, where=where))
