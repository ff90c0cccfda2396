"""What `lora-drop ablate --config grid.yaml` is to run, read and checked before anything is loaded."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.fingerprint import digest, short
from lm_eval_lora_drop.spec import parse_boundary, parse_layers

_LISTS = ("adapters", "boundaries", "layers", "metrics")
_EVALUATION = (
    *("limit", "num_fewshot", "batch_size", "apply_chat_template", "system_instruction", "gen_kwargs"),
    *("bootstrap_iters", "device"),
)
_KEYS = ("model_args", "tasks", "output", "include_path", "metadata", *_LISTS, *_EVALUATION)


@dataclass(frozen=True)
class Cell:
    """One run: an adapter, what is kept of it, and the metric that a sweep optimises (None: the task's first)."""

    adapter: str
    setting: str
    metric: str | None

    @property
    def model_args(self) -> dict[str, str]:
        """What differs from cell to cell."""
        name, _, value = self.setting.partition("=")
        return {name: value} | ({"sweep_metric": self.metric} if self.metric else {})

    @property
    def name(self) -> str:
        """For the terminal and the folder."""
        metric = f" by {self.metric}" if self.metric else ""
        return f"{Path(self.adapter).name} {self.setting}{metric}"


@dataclass(frozen=True)
class Grid:
    """The whole configuration. `evaluation` goes to `lm_eval.simple_evaluate` as it is."""

    model_args: Mapping[str, Any]
    tasks: tuple[str, ...]
    output: Path
    cells: tuple[Cell, ...]
    include_path: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)

    def folder(self, cell: Cell) -> Path:
        """Where a cell is written: its name, and a digest of everything that changes its answers."""
        settings = [self.model_args, self.tasks, self.metadata, self.evaluation, cell.adapter, cell.model_args]
        return self.output / f"{re.sub(r'[^A-Za-z0-9=+._-]+', '_', cell.name)}-{short(digest(*settings), 8)}"


def read_grid(path: Path) -> Grid:
    """Read and check a grid.

    Raises:
        ArgumentError: the file cannot be read, or an entry cannot be used as written.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ArgumentError(f"{path} cannot be read as YAML ({error}).") from error
    if not isinstance(data, dict):
        raise ArgumentError(f"{path} must hold keys and values, got {type(data).__name__}.")
    for key in data:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" There are: {', '.join(_KEYS)}."
            raise ArgumentError(f"{path} has an unknown key {key!r}.{hint}")
    model_args = data.get("model_args")
    if not isinstance(model_args, dict) or "pretrained" not in model_args:
        raise ArgumentError(f"{path}: model_args must name the base model, e.g. model_args: {{pretrained: ...}}.")
    tasks, output = _texts(path, data, "tasks"), data.get("output")
    if not tasks or not output:
        raise ArgumentError(f"{path} must have tasks (a list) and output (a folder).")
    return Grid(
        model_args={key: value for key, value in model_args.items() if key not in ("peft", "boundary", "layers")},
        tasks=tuple(tasks),
        output=Path(str(output)).expanduser(),
        cells=_cells(path, data, model_args),
        include_path=data.get("include_path"),
        metadata=data.get("metadata") or {},
        evaluation={key: data[key] for key in _EVALUATION if key in data},
    )


def _cells(path: Path, data: Mapping[str, Any], model_args: Mapping[str, Any]) -> tuple[Cell, ...]:
    adapters = _texts(path, data, "adapters") or ([str(model_args["peft"])] if "peft" in model_args else [])
    if not adapters:
        raise ArgumentError(f"{path} must name adapters (a list), or one as model_args: {{peft: ...}}.")
    boundaries = [parse_boundary(value) for value in _texts(path, data, "boundaries")]
    settings = [*map(str, boundaries), *(str(parse_layers(value)) for value in _texts(path, data, "layers"))]
    if not settings:
        raise ArgumentError(f"{path} must have boundaries or layers, e.g. boundaries: [full, 20, auto].")
    metrics = _texts(path, data, "metrics")
    searching = {str(spec) for spec in boundaries if spec.kind == "auto"}
    cells = []
    # Adapter by adapter: changing it is the slow step.
    for adapter in adapters:
        for setting in settings:
            choices: Sequence[str | None] = metrics if setting in searching and metrics else [None]
            cells += [Cell(adapter, setting, metric) for metric in choices]
    return tuple(dict.fromkeys(cells))


def _texts(path: Path, data: Mapping[str, Any], key: str) -> list[str]:
    value = data.get(key)
    if value is None:
        return []
    if isinstance(value, str | int):
        return [str(value)]
    if not isinstance(value, list) or not all(isinstance(item, str | int) for item in value):
        raise ArgumentError(f"{path}: {key} must be a list of texts or numbers, got {value!r}.")
    return [str(item) for item in value]
