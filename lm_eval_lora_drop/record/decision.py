"""What is decided for a task, and how it is written into the results file. Backend-free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.boundary import LayerSet
from lm_eval_lora_drop.sweep.metric import MetricSpec
from lm_eval_lora_drop.validation import Binding, ValidationSet

SCHEMA = 1
LIBRARIES = ("lm_eval", "torch", "transformers", "peft", "accelerate", "vllm")


@dataclass(frozen=True)
class Decision:
    """The layers a task is answered with, and how they were found.

    `fingerprint` digests everything that changed the decision: model, adapter, task, and the validation documents.
    """

    kept: LayerSet
    method: str
    binding: Binding | None = None
    fingerprint: str = ""
    metric: MetricSpec | None = None
    drawn: ValidationSet | None = None
    sweep: Mapping[str, Any] | None = None
    probe: Mapping[str, Any] | None = None
    journal: Path | None = None
    figure: Path | None = None
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    recorded: Mapping[str, Any] | None = None
    """The record of an earlier run, where the decision was taken from its answer cache."""

    def bound_to(self, binding: Binding) -> Decision:
        """The same decision for the task of this run."""
        return replace(self, binding=binding)

    def to_json(self, kept_parameters: int, dropped_parameters: int) -> dict[str, Any]:
        """The task's entry in the results file (design, section 4)."""
        if self.recorded is not None:
            return {**self.recorded, "from_answer_cache": True}
        return {
            "boundary": self.kept.boundary,
            "layers": self.kept.spec,
            "num_layers": self.kept.num_layers,
            "method": self.method,
            "metric": self.metric and self.metric.name,
            "filter": self.metric and self.metric.filter,
            "higher_is_better": self.metric and self.metric.higher_is_better,
            "split": self.drawn and self.drawn.split,
            "doc_ids": self.drawn and [document.doc_id for document in self.drawn.documents],
            "left_out": self.drawn.left_out if self.drawn else 0,
            "sweep": self.sweep,
            "probe": self.probe,
            "kept_parameters": kept_parameters,
            "dropped_parameters": dropped_parameters,
            "seconds": round(self.seconds, 3),
            "journal": self.journal and str(self.journal),
            "figure": self.figure and str(self.figure),
            "fingerprint": self.fingerprint,
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Decision:
        """The decision of an earlier run, to be taken again without searching."""
        layers = record["kept_layers"]
        return cls(
            LayerSet(frozenset(layers), record["num_layers"]),
            method=record["method"],
            fingerprint=record["fingerprint"],
            recorded={key: value for key, value in record.items() if key != "kept_layers"},
        )


def digest(*parts: object) -> str:
    """SHA-256 over the JSON of `parts`, prefixed by the name of the algorithm."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def library_versions() -> dict[str, str]:
    """The installed versions of what computes the numbers."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
