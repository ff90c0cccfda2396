"""What the tests of the benchmarks share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def read_sample(shared_data: Path) -> Callable[[str], list[dict[str, Any]]]:
    """Reads the sample files that a pattern matches, without the project's own reader."""

    def read(pattern: str) -> list[dict[str, Any]]:
        files = sorted(shared_data.glob(pattern))
        assert files, pattern
        return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").split("\n") if line]

    return read


@pytest.fixture(scope="session")
def load_task() -> Callable[..., Any]:
    """Loads a task of ours by name, with metadata as `--metadata` gives it."""
    from lm_eval.tasks import TaskManager

    def load(name: str, *, include_path: Path | None = None, **metadata: Any) -> Any:
        # What the command line adds too: the model's arguments.
        metadata = {"pretrained": "base", "peft": "adapter", "revision": "main", "dtype": "float32", **metadata}
        folders = [str(path) for path in (ROOT / "tasks", include_path) if path is not None]
        manager = TaskManager(include_path=folders, include_defaults=False, metadata=metadata)
        return manager.load([name])["tasks"][name]

    return load
