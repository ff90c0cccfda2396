"""The systems that a comparison is about, and whether their runs of a task are comparable at all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from lm_eval_lora_drop.errors import ArgumentError, LoraDropError
from lm_eval_lora_drop.record.find import find_runs
from lm_eval_lora_drop.record.runs import Documents, Issue, Run, TaskRun

_SHOWN = 5
_PATH_SEPARATOR = re.compile(r"[/\\]")
Made = TypeVar("Made")


@dataclass
class System:
    """What was evaluated: one model with one setting, its newest run of each task."""

    label: str
    tasks: dict[str, TaskRun] = field(default_factory=dict)

    @property
    def runs(self) -> list[Run]:
        """The runs behind `tasks`."""
        return list({id(task.run): task.run for task in self.tasks.values()}.values())


def open_system(argument: str) -> tuple[System, list[Issue]]:
    """The system that `[LABEL=]PATH` names: a results file, or a folder with the runs of one system.

    Raises:
        ArgumentError: nothing there, or runs of several systems.
    """
    label, separator, rest = argument.partition("=")
    # A path may contain "=" (boundary=27/results.json): an existing path has no label.
    path = Path(argument) if not separator or Path(argument).exists() else Path(rest)
    systems, issues = group([path])
    if not systems:
        raise ArgumentError("; ".join(map(str, issues)) or f"{path} holds no readable run.")
    if len(systems) > 1:
        raise ArgumentError(
            f"{path} holds runs of {len(systems)} systems ({', '.join(s.label for s in systems[:_SHOWN])}). Name one "
            "results file for each system, or set them side by side with `lora-drop leaderboard`."
        )
    if str(path) == rest:
        systems[0].label = label
    return systems[0], issues


def group(paths: Iterable[Path]) -> tuple[list[System], list[Issue]]:
    """All runs below `paths` by system, in the order of their first run; what was wrong or passed over is named.

    Of several runs of a task by one system the newest counts.
    """
    runs, issues = find_runs(paths)
    systems: dict[tuple[str, ...], System] = {}
    for run in runs:
        issues += run.issues
        system = systems.setdefault(_identity(run), System(run.system))
        for name, task in run.tasks.items():
            older = system.tasks.get(name)
            if older is not None:
                issues.append(Issue(older.run.path, f"task {name}: passed over for the newer run {run.path.name}."))
            system.tasks[name] = task
    issues += [issue for system in systems.values() for task in system.tasks.values() for issue in task.issues]
    _tell_apart(list(systems.values()))
    return [system for system in systems.values() if system.tasks], issues


def from_paths(paths: Iterable[Path], make: Callable[[Sequence[System], list[Issue]], Made]) -> Made:
    """What `make` makes of the systems below `paths` and of what is wrong with the files; a run that it fails on is
    left out and named.

    Known damage is found where a file is read. This is for the unknown: systems are then added one by one.

    Raises:
        LoraDropError: as `make` raises it for all systems: it concerns the command, not a run.
        ArgumentError: no run can be used.
    """
    systems, issues = group(paths)
    if not systems:
        raise ArgumentError("none of the files could be read: " + "; ".join(map(str, issues)))
    kept: list[System] = []
    try:
        return make(systems, issues)
    except LoraDropError:
        raise
    except Exception:  # noqa: BLE001  any: what a damaged file may cause cannot be listed
        for system in systems:
            try:
                make([*kept, system], issues)
                kept.append(system)
            except LoraDropError:
                kept.append(system)
            except Exception as error:  # noqa: BLE001  as above
                why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                issues += [Issue(run.path, f"cannot be used ({why}); left out.") for run in system.runs]
    if not kept:
        raise ArgumentError("none of the runs can be used: " + "; ".join(map(str, issues[:3])))
    return make(kept, issues)


def _identity(run: Run) -> tuple[str, ...]:
    """Runs of one system agree in this: what was loaded and how layers were kept, not how fast it ran."""
    passing = {"device", "batch_size", "max_batch_size", "parallelize", "sweep_dir", "sweep_batch_size", "evaluate"}
    args = [f"{name}={value}" for name, value in sorted(run.model_args.items()) if name not in passing]
    fingerprint = run.record.fingerprint if run.record else ""
    return (run.model_type, *(args or [str(run.data.get("model_name") or run.path)]), fingerprint)


def _tell_apart(systems: Sequence[System]) -> None:
    """Give systems of one label what their model_args differ in, else a number."""
    by_label: dict[str, list[System]] = {}
    for system in systems:
        by_label.setdefault(system.label, []).append(system)
    for label, twins in by_label.items():
        if len(twins) < 2:
            continue
        args = [dict(system.runs[0].model_args) for system in twins if system.runs]
        # Paths of seeds or checkpoints are long and differ in one folder.
        shared_names = [name for name in (args[0] if args else ()) if all(name in one for one in args)]
        short = [dict(one) for one in args]
        for name in shared_names:
            for one, text in zip(short, what_differs([each[name] for each in args]), strict=True):
                one[name] = text
        for number, (system, mine, shown) in enumerate(zip(twins, args, short, strict=False), start=1):
            differing = [f"{name}={shown[name]}" for name in mine if any(a.get(name) != mine[name] for a in args)]
            system.label = f"{label} ({', '.join(differing)})" if differing else f"{label} ({number})"
        if len({system.label for system in twins}) < len(twins):
            for number, system in enumerate(twins, start=1):
                system.label = f"{system.label} #{number}"


def what_differs(values: Sequence[str]) -> list[str]:
    """The values without the path components that all of them begin and end with.

    `out/seed1/adapter`, `out/seed2/adapter` become `seed1`, `seed2`. Values that would be empty, or equal although they
    were not, are left as they are.
    """
    parts = [_PATH_SEPARATOR.split(value.rstrip("/\\")) for value in values]
    shortest = min(map(len, parts), default=0)
    if len(set(values)) < 2 or shortest < 1:
        return list(values)
    start = 0
    while start < shortest and len({tuple(part[: start + 1]) for part in parts}) == 1:
        start += 1
    end = 0
    while start + end < shortest and len({tuple(part[len(part) - end - 1 :]) for part in parts}) == 1:
        end += 1
    short = ["/".join(part[start : len(part) - end]) for part in parts]
    same_order = [short.index(text) for text in short] == [values.index(value) for value in values]
    return short if all(short) and same_order else list(values)


def differences(one: TaskRun, other: TaskRun, filter_name: str) -> list[str]:
    """In what two runs of a task differ that makes their documents incomparable; empty when they can be compared."""
    found = []
    if one.version != other.version:
        found.append(f"task version ({one.version} and {other.version})")
    left, right = one.documents.get(filter_name), other.documents.get(filter_name)
    if left is None or right is None:
        return found
    found += document_differences(left, right)
    if one.num_fewshot != other.num_fewshot:
        found.append(f"number of few-shot examples ({one.num_fewshot} and {other.num_fewshot})")
    return found


def document_differences(left: Documents, right: Documents) -> list[str]:
    """In what two sets of logged documents differ: which documents, their content, prompts, targets."""
    found = []
    if left.doc_ids != right.doc_ids:
        only_left = sorted(set(left.doc_ids) - set(right.doc_ids))
        only_right = sorted(set(right.doc_ids) - set(left.doc_ids))
        parts = [
            f"{len(ids)} only in {where} ({_some(ids)})"
            for ids, where in ((only_left, "the first"), (only_right, "the second"))
            if ids
        ]
        found.append(f"documents ({len(left.doc_ids)} and {len(right.doc_ids)}; {', '.join(parts) or 'repeated ones'})")
    if left.identity is right.identity or left.identity == right.identity:
        return found
    mine, theirs = (dict(zip(d.doc_ids, d.identity, strict=True)) for d in (left, right))
    shared = [doc_id for doc_id in mine if doc_id in theirs]
    for position, what in enumerate(("content of documents", "prompts", "targets")):
        differing = [doc_id for doc_id in shared if mine[doc_id][position] != theirs[doc_id][position]]
        if differing:
            found.append(f"{what} ({len(differing)} of {len(shared)}: doc_id {_some(differing)})")
    return found


def common_tasks(systems: Sequence[System]) -> tuple[list[str], list[str]]:
    """Tasks that the first system shares with any other, and a sentence for each that not all have.

    Raises:
        ArgumentError: there is no such task.
    """
    every = dict.fromkeys(name for system in systems for name in system.tasks)
    having: Mapping[str, list[str]] = {name: [s.label for s in systems if name in s.tasks] for name in every}
    common = [name for name, labels in having.items() if name in systems[0].tasks and len(labels) > 1]
    if not common:
        listed = "; ".join(f"{system.label}: {', '.join(system.tasks)}" for system in systems)
        raise ArgumentError(f"the systems have no task in common ({listed}). Compare runs of the same task.")
    partial = [
        f"task {name}: only {', '.join(labels)} have it."
        if name in common
        else f"task {name} is left out: only {', '.join(labels)} has it."
        for name, labels in having.items()
        if len(labels) < len(systems)
    ]
    return common, partial


def _some(doc_ids: Sequence[int]) -> str:
    more = f", ... {len(doc_ids) - _SHOWN} more" if len(doc_ids) > _SHOWN else ""
    return ", ".join(map(str, doc_ids[:_SHOWN])) + more
