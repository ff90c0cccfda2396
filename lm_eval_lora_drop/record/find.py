"""Reads what `lm_eval --output_path ... --log_samples` wrote: `results_<date>.json` and `samples_<task>_<date>.jsonl`.

Runs of `hf-lora-drop` and of any other model type are read alike. What cannot be read is named (`Issue`) and the rest
is still there: a folder of 500 runs is not lost over one torn file. The layout is that of
lm_eval/loggers/evaluation_tracker.py, releases 0.4.x; older files are read as far as they go.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeGuard

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import is_folder, why_not_ours
from lm_eval_lora_drop.record.runs import Documents, Issue, Run, Sample, Score, TaskRun, json_object
from lm_eval_lora_drop.record.schema import from_config
from lm_eval_lora_drop.text import shown

__all__ = ["Documents", "Issue", "Run", "Sample", "Score", "TaskRun", "find_runs", "read_run"]

KNOWN_RELEASE = "0.4."
"""Releases of lm-eval whose files this module was written for."""
LARGEST = 512 << 20
"""Bytes of a results file: samples stand in files of their own, and the largest seen (MMLU, 60 subjects) has 2 MB."""
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?")
_NO_METRIC = frozenset({"name", "alias", "sample_len", "samples", " "})


def find_runs(paths: Iterable[Path]) -> tuple[list[Run], list[Issue]]:
    """The runs below `paths` (folders, searched to any depth, or results files), oldest first, and what was unreadable.

    Raises:
        ArgumentError: a path that does not exist, or no results file at all.
    """
    paths = list(paths)
    files: dict[Path, None] = {}
    issues: list[Issue] = []
    for path in paths:
        if is_folder(path):
            # Names only: what is a pipe or a link out of the folder is listed, not opened.
            for file in sorted(file for file in path.rglob("*.json") if _is_results_name(file.name)):
                why = why_not_ours(file, path)
                if why is None:
                    files[file] = None
                elif not is_folder(file):
                    issues.append(Issue(file, why))
        elif why := why_not_ours(path, path):
            there = os.path.lexists(path) if "\0" not in str(path) else False
            raise ArgumentError(
                f"{path} {why}"
                if there
                else f"{path} does not exist. Give the folder that was lm_eval's --output_path."
            )
        else:
            files[path] = None
    if not files and not issues:
        raise ArgumentError(
            f"no results file (results_<date>.json) under {', '.join(map(str, paths))}. Run lm_eval with "
            "--output_path <folder> --log_samples and give that folder."
        )
    runs: list[Run] = []
    for file in files:
        run = read_run(file)
        if isinstance(run, Issue):
            issues.append(run)
        else:
            runs.append(run)
    return sorted(runs, key=lambda run: (run.date, str(run.path))), issues


_OF_A_MODEL = re.compile(
    r".*\.(safetensors|bin|pt|gguf|py|jinja|ya?ml)|(adapter_|generation_|tokenizer_)?config\.json|tokenizer\.json"
)


def kind_of_file(path: Path) -> str | None:
    """What an existing file is that no command may overwrite, by its name or by what it holds; None for any other."""
    if not (os.path.lexists(path) and os.path.isfile(path)):
        return None
    name = Path(os.path.realpath(path)).name
    if _OF_A_MODEL.fullmatch(name) or _OF_A_MODEL.fullmatch(path.name):  # in the Hub's cache a link has the name
        return "a file of a model, an adapter or a program, by its name"
    if re.fullmatch(rf"(results|samples_.*)_{_DATE.pattern}\.jsonl?|.*\.rank\d+\.jsonl", name):
        return "a file of a run, by its name"
    if path.stat().st_size > LARGEST:
        return "larger than anything that is written here"
    lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).strip()
    whole = json_object(lines.decode("utf-8", "surrogateescape")) or {}
    if isinstance(whole.get("results"), dict):
        return "a results file of lm_eval"
    if "probe" in whole and "task" in whole:
        return "what lora-drop probe has written"
    first = json_object(lines.partition(b"\n")[0].decode("utf-8", "surrogateescape")) or {}
    if "doc_id" in first and ("resps" in first or "filtered_resps" in first or "target" in first):
        return "a samples file of lm_eval"
    return "the journal of a sweep" if "crc" in first and "fingerprint" in first else None


def read_run(path: Path) -> Run | Issue:
    """One results file, or why it cannot be used."""
    try:
        return _read_run(path)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, OSError) as error:
        # A table that is a number, a name that is a list: the harness writes none such, and each of its many fields
        # may be so in a file that was edited.
        return Issue(path, f"is damaged or was edited ({type(error).__name__}: {str(error)[:200]}); left out.")


def _read_run(path: Path) -> Run | Issue:
    try:
        if path.stat().st_size > LARGEST:
            return Issue(path, f"is larger than {LARGEST >> 20} MB, as no results file is; left out.")
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        return Issue(path, f"cannot be read ({error.strerror or error}); left out.")
    data = json_object(text)
    if data is None:
        return Issue(path, "is no complete JSON object (truncated, perhaps by a run that was killed); left out.")
    if not isinstance(data.get("results"), dict):
        return Issue(path, "has no table `results`, so it is no results file of lm_eval; left out.")
    try:
        return run_of(data, path)
    except ArgumentError as error:
        return Issue(path, f"{str(error).removeprefix(f'{path}: ')} Left out.")


def run_of(data: dict[str, Any], path: Path) -> Run:
    """The run in a results dictionary of the harness; samples are looked for beside `path`, its file.

    Raises:
        ArgumentError: what is written down of the search is damaged.
    """
    results = data["results"]
    run = Run(path, _date_of(path, data), data)
    run.record = from_config(run.config, path)
    if not run.lm_eval_version.startswith(KNOWN_RELEASE):
        said = f"lm-eval {run.lm_eval_version}" if run.lm_eval_version else "an lm-eval that does not name its release"
        run.issues.append(Issue(path, f"was written by {said}; read as one of {KNOWN_RELEASE}x, check what is shown."))
    groups = data.get("group_subtasks")
    parents = {name for name, members in groups.items() if members} if isinstance(groups, dict) else set()
    for name, metrics in results.items():
        if name not in parents and isinstance(metrics, dict):
            run.tasks[name] = _read_task(run, name, metrics)
    if not run.tasks:
        run.issues.append(Issue(path, "holds no task."))
    return run


def only_run(path: Path, task: str | None = None) -> Run:
    """The run of `hf-lora-drop` in a results file, or the only one (of those with `task`) in a folder.

    Raises:
        ArgumentError: none, or several.
    """
    runs, issues = find_runs([path])
    ours = [run for run in runs if run.record is not None and run.record.tasks]
    if not ours:
        why = f" ({'; '.join(map(str, issues[:3]))})" if issues else ""
        raise ArgumentError(f"{path} holds no run of hf-lora-drop{why}. Give the --output_path of one.")
    having = [run for run in ours if task is None or task in run.tasks]
    if len(having) > 1:
        listed = ", ".join(str(run.path) for run in having[:5])
        which = f" with task {task}" if task else ""
        raise ArgumentError(
            f"{path} holds {len(having)} runs ({listed}) of hf-lora-drop{which}. Name one results file."
        )
    return having[0] if having else ours[0]


def _read_task(run: Run, name: str, metrics: Mapping[str, Any]) -> TaskRun:
    data = run.data
    samples, why = _samples_of(run.path, f"samples_{name}_{run.date}.jsonl")
    counts = _entry(data, "n-samples", name)
    evaluated = counts.get("effective") if isinstance(counts, dict) else metrics.get("sample_len")
    shots = _entry(data, "n-shot", name)
    better = _entry(data, "higher_is_better", name)
    config = _entry(data, "configs", name)
    task = TaskRun(
        run=run,
        name=name,
        version=str(_entry(data, "versions", name)),
        scores=scores_of(metrics, config),
        higher_is_better={
            str(metric): value if isinstance(value, bool) else None
            for metric, value in (better.items() if isinstance(better, dict) else ())
        },
        num_fewshot=shots if isinstance(shots, int) else None,
        documents_evaluated=evaluated if isinstance(evaluated, int) and not isinstance(evaluated, bool) else None,
        config=config if isinstance(config, dict) else {},
        samples_path=samples,
    )
    if samples is None:
        task.issues.append(Issue(run.path, f"task {shown(name)}: {why}; its scores are shown."))
    return task


def _samples_of(results: Path, name: str) -> tuple[Path | None, str]:
    """The samples file of this name beside the results, or why there is none that can be read."""
    none = f"no {shown(name)} beside it (was --log_samples given?)"
    if "/" in name or "\0" in name:
        return None, none
    path = results.parent / name
    try:
        there = os.path.lexists(path)
    except (OSError, ValueError):
        there = False
    if not there:
        return None, none
    why = why_not_ours(path, results.resolve().parent)
    return (path, "") if why is None else (None, f"{shown(name)} {why.partition(';')[0]}")


def scores_of(metrics: Mapping[str, Any], config: Any) -> dict[tuple[str, str], Score]:
    """The scores in one task's table of `results`, by (metric, filter), in the order of its `metric_list`.

    So the first is the one that a sweep optimises by default: the table has the order of `process_results`. A metric
    function that returns several (`pass_at_k` gives `pass@1`) has the place of its entry.
    """
    found = {}
    for key, value in metrics.items():
        metric, _, filter_name = key.partition(",")
        if metric in _NO_METRIC or metric.endswith("_stderr") or not _is_number(value):
            continue
        stderr = metrics.get(f"{metric}_stderr,{filter_name}" if filter_name else f"{metric}_stderr")
        found[metric, filter_name or "none"] = Score(float(value), float(stderr) if _is_number(stderr) else None)
    listed = config.get("metric_list") if isinstance(config, dict) else None
    entries = [str(one.get("metric")) for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    names = {metric for metric, _ in found}
    several = next((place for place, one in enumerate(entries) if one not in names), len(entries))
    places = {name: entries.index(name) if name in entries else several for name in names}
    return {key: found[key] for key in sorted(found, key=lambda key: places[key[0]])}


def _is_number(value: Any) -> TypeGuard[float]:
    # A score that is infinite or no number at all says nothing; nor does an integer that no float can hold.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _entry(data: Mapping[str, Any], table: str, task: str) -> Any:
    found = data.get(table)
    return found.get(task) if isinstance(found, dict) else None


def _is_results_name(name: str) -> bool:
    return name.startswith("results") or _DATE.search(name) is not None


def _date_of(path: Path, data: Mapping[str, Any]) -> str:
    """As in the file's name, which its samples share; else from the run's own clock."""
    match = _DATE.search(path.name)
    if match:
        return match[0]
    seconds = data.get("date")
    if not _is_number(seconds) or not 0 <= seconds < 253_402_300_800:  # the year 10000
        return ""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H-%M-%S")
