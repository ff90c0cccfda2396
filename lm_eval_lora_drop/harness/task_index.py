"""lm-eval's `TaskManager`, without the harness's own tasks where none is asked for: to index those takes seconds."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.files import package_folder

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


def _manager(folders: tuple[str, ...], metadata: Mapping[str, Any] | None, *, with_harness: bool) -> Any:
    from lm_eval.tasks.manager import TaskManager

    files = sorted(path for folder in folders for path in Path(folder).glob("**/*.yaml") if path.is_file())
    stamps = tuple((str(path), path.stat().st_mtime_ns) for path in files)
    key = (folders, stamps, json.dumps(metadata, sort_keys=True, default=repr), with_harness)
    if key not in _made:
        # With the harness's tasks ours come too (plugin.py). Ours first: a later folder overrides an earlier one.
        paths = [*folders] if with_harness else [str(package_folder("tasks")), *folders]
        _made[key] = TaskManager(
            include_path=paths or None,
            include_defaults=with_harness,
            metadata=None if metadata is None else {**metadata},
        )
    return _made[key]
