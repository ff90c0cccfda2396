"""lm-eval's `TaskManager`, without its own tasks where none is asked for: to index those takes seconds. And the tasks
that a running evaluation was asked for."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError, LoraDropError
from lm_eval_lora_drop.files import package_folder
from lm_eval_lora_drop.harness.evaluation import results_folder
from lm_eval_lora_drop.text import did_you_mean, shown

Folders = str | Path | Sequence[str | Path] | None
_made: dict[tuple[Any, ...], Any] = {}


def task_manager(
    names: Collection[str], include_path: Folders = None, metadata: Mapping[str, Any] | None = None
) -> Any:
    """A manager that knows these tasks, if the harness, this package or `include_path` has them.

    Made once for the same arguments and files. A task means the same in either manager, since one of ours or of the
    user stands before one of the harness; a group or tag may name tasks of the harness, so it gets the whole index.
    """
    given = [] if include_path is None else [include_path] if isinstance(include_path, (str, Path)) else include_path
    folders = tuple(map(str, given))
    few = _manager(folders, metadata, with_harness=False)
    return few if set(names) <= set(few.all_subtasks) else _manager(folders, metadata, with_harness=True)


def load_task(
    name: str, include_path: str | None = None, metadata: Mapping[str, Any] | None = None, *, option: str = "task"
) -> Any:
    """One task of the harness, its data loaded.

    Raises:
        ArgumentError: no such task, a group, no such folder, or data that cannot be loaded. `option` is what named it.
    """
    if include_path is not None and not Path(include_path).is_dir():
        raise ArgumentError(f"include_path must be a folder with task files; {include_path} is not a directory.")
    manager = task_manager([name], include_path, metadata)
    if name not in manager.all_subtasks:
        kind = "a group of tasks" if name in manager.all_tasks else "not known"
        hint = did_you_mean(name, manager.all_subtasks, otherwise="List them with lm_eval ls tasks.")
        raise ArgumentError(f"{option} must name one lm-eval task; {shown(name)!r} is {kind}.{hint}")
    try:
        return manager.load([name])["tasks"][name]
    except LoraDropError:
        raise
    except Exception as error:  # a task's own code may raise anything
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ArgumentError(f"{option} {name} cannot be loaded: {said}") from error


def _manager(folders: tuple[str, ...], metadata: Mapping[str, Any] | None, *, with_harness: bool) -> Any:
    from lm_eval.tasks.manager import TaskManager

    files = sorted(path for folder in folders for path in Path(folder).glob("**/*.yaml") if path.is_file())
    stamps = tuple((str(path), path.stat().st_mtime_ns) for path in files)
    key = (folders, stamps, json.dumps(metadata, sort_keys=True, default=repr), with_harness)
    if key not in _made:
        # With the harness's tasks ours come too (harness/hooks). Ours first: a later folder overrides an earlier one.
        paths = [*folders] if with_harness else [str(package_folder("tasks")), *folders]
        _made[key] = TaskManager(
            include_path=paths or None,
            include_defaults=with_harness,
            metadata=None if metadata is None else {**metadata},
        )
    return _made[key]


@dataclass(frozen=True)
class RunningEvaluation:
    """What a call of `lm_eval.simple_evaluate` was given."""

    tasks: Sequence[Any]
    manager: Any
    metadata: Mapping[str, Any]
    saves_samples: bool
    output: Path | None
    """The folder that its results file will be in, None where none is written."""


def running_evaluation() -> RunningEvaluation | None:
    """The call of `simple_evaluate` that is running, None outside of one.

    lm-eval (0.4.13) builds the model before it loads the tasks and tells the model nothing of them, so that what does
    not fit a task would be found after minutes of loading weights. The call's arguments are public; its frame has them.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "simple_evaluate" and frame.f_globals.get("__name__") == "lm_eval.evaluator":
            given = frame.f_locals
            output = results_folder(given.get("evaluation_tracker"), given.get("model_args"))
            return RunningEvaluation(
                given.get("tasks") or (),
                given.get("task_manager"),
                given.get("metadata") or {},
                saves_samples=bool(given.get("log_samples")) and output is not None,
                output=output,
            )
        frame = frame.f_back
    return None


def listed_metrics(manager: Any, task: Any) -> list[str]:
    """The metrics that a task's own file lists; none where it computes them in code or is given as an object."""
    from lm_eval.tasks._yaml_loader import load_yaml

    entry = manager.task_index.get(task) if isinstance(task, str) else None
    path = getattr(entry, "yaml_path", None)
    try:
        data = task if isinstance(task, dict) else {} if path is None else load_yaml(path, resolve_func=False)
    except Exception:  # noqa: BLE001  lm-eval loads it next, and says what is wrong with it
        return []
    listed = data.get("metric_list") if isinstance(data, dict) else None
    return [str(one["metric"]) for one in listed if isinstance(one, dict) and "metric" in one] if listed else []
