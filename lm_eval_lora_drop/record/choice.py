"""`boundary=@results.json`: another run's choice, on the same adapter and base model, with any backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.find import find_runs
from lm_eval_lora_drop.record.schema import RunRecord
from lm_eval_lora_drop.text import logger
from lm_eval_lora_drop.variant import Variant

log = logger(__name__)


@dataclass(frozen=True)
class Recorded:
    """A run that was read: its file, what it wrote down, and which of its tasks was named (None: none)."""

    path: Path
    record: RunRecord
    task: str | None


@dataclass(frozen=True)
class RecordedVariant:
    """What is taken over, and from which file."""

    variant: Variant
    path: Path


def read_recorded(source: str) -> Recorded:
    """Read `PATH` or `PATH#TASK`, a results file or a folder with one run of ours.

    Raises:
        ArgumentError: no such file, no or several runs of ours, or no such task.
    """
    # A path that exists wins over a task after `#`, since a folder may have one in its name.
    name, hash_sign, task = source.rpartition("#")
    path = Path(source).expanduser()
    if path.exists() or not hash_sign:
        task = ""
    else:
        path = Path(name).expanduser()
    runs, issues = find_runs([path])
    found = [(run.path, run.record) for run in runs if run.record is not None and run.record.tasks]
    if len(found) != 1:
        listed = ", ".join(file.name for file, _ in found[:5]) or "; ".join(map(str, issues)) or "none"
        raise ArgumentError(
            f"boundary=@{source} must name one run of hf-lora-drop, and {path} holds {len(found)} ({listed}). Name its "
            "results file."
        )
    file, record = found[0]
    if task and task not in record.tasks:
        raise ArgumentError(f"boundary=@{source}: {file} has the tasks {', '.join(record.tasks)}, got {task!r}.")
    return Recorded(file, record, task or None)


def recorded_choice(source: str, task: str, parts: Mapping[str, Any]) -> RecordedVariant:
    """The choice of the run at `source` for `task`, if that run had this adapter and base model.

    The task that was named after `#` decides; else the one of the same name; else the run's only one, so that a choice
    made in one domain can be tested in another.

    Args:
        source: as in `read_recorded`.
        task: the name of the task that is evaluated now.
        parts: the backend's `fingerprint_parts`.

    Raises:
        ArgumentError: another adapter or base model, or it is not clear which task is meant.
    """
    found = read_recorded(source)
    for what, then, now in (
        ("adapter", found.record.adapter.fingerprint, parts["adapter"]["fingerprint"]),
        ("base model", found.record.base.fingerprint, parts["base"]["fingerprint"]),
    ):
        if then != now:
            raise ArgumentError(
                f"boundary=@{source} is the choice for another {what}: its digest was {then}, this one's is {now}. A "
                f"choice holds for the {what} it was made with; give that, or boundary=K."
            )
    tasks = found.record.tasks
    name = found.task or (task if task in tasks else next(iter(tasks)) if len(tasks) == 1 else None)
    if name is None:
        raise ArgumentError(
            f"boundary=@{source} has no task {task}, and several others: {', '.join(tasks)}. Name the one whose choice "
            f"is taken: boundary=@{source}#{next(iter(tasks))}."
        )
    if name != task:
        log.info("%s: takes the choice made for %s in %s", task, name, found.path)
    return RecordedVariant(tasks[name].kept, found.path)
