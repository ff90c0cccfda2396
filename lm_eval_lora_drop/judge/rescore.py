"""Fills GPT-Scores into a results file later: what is in the judges' cache is free, the rest is asked now."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError, LoraDropError
from lm_eval_lora_drop.files import write_atomically
from lm_eval_lora_drop.judge.cache import Cache
from lm_eval_lora_drop.judge.panel import RESERVED_NAMES, panel_from
from lm_eval_lora_drop.judge.questions import Rubric, load_rubric
from lm_eval_lora_drop.judge.score import Item, PanelScores, score, what_was_asked
from lm_eval_lora_drop.judge.task import METRIC, RECORD, item_of, judge_fields
from lm_eval_lora_drop.record.find import find_runs, read_run
from lm_eval_lora_drop.record.runs import Issue, Sample, TaskRun, json_object


@dataclass
class JudgeableTask:
    """A task of a results file whose outputs judges can score; item i is sample i."""

    run: TaskRun
    samples: list[Sample]
    items: list[Item]


def check_judging(metadata: Mapping[str, Any], *, saves_samples: bool) -> None:
    """Refuse, before a model is loaded, a rubric whose run could not be judged at its end.

    Raises:
        ArgumentError: no such rubric, no panel, a key that is missing, or outputs that are not saved.
    """
    load_rubric(metadata["rubric"])
    panel = panel_from(metadata)
    if panel is None or not saves_samples:
        raise ArgumentError(
            "metadata.rubric has outputs judged from the files of the run: it needs a panel (metadata.judges), "
            "--output_path and --log_samples."
        )
    panel.check_keys()


def judge_after_run(path: Path) -> list[str]:
    """Score the tasks of a finished run that was given a rubric (`--metadata '{"judges": ..., "rubric": ...}'`).

    Returns:
        A sentence for each task. What goes wrong is one as well: the run's other results are there already.
    """
    run = read_run(path)
    configs = [] if isinstance(run, Issue) else [task.config for task in run.tasks.values()]
    given = [found for config in configs if isinstance(found := config.get("metadata"), dict) and found.get("rubric")]
    if not given:
        return []
    said = []
    try:
        rubric, panel = load_rubric(given[0]["rubric"]), panel_from(given[0])
        if panel is None:
            raise ArgumentError("a rubric needs a panel: name one under `judges` beside it.")
        with closing(Cache()) as cache:
            for judged in judged_tasks(path, rubric):
                found = score(panel, judged.items, cache, rubric=rubric)
                write_scores(judged, found)
                said.append(
                    f"{judged.run.name}: GPT-Score {found.mean:.1f} %, coverage {found.coverage:.0%}, in {path}"
                )
                said += found.warnings()
    except LoraDropError as error:
        said.append(f"no GPT-Score ({error}). Repeat with: lora-drop judge rescore {path} --panel ... --rubric ...")
    return said


def judged_tasks(path: Path, rubric: Rubric | None = None, *, to_write: bool = True) -> list[JudgeableTask]:
    """The tasks of a results file (or of the newest one in a folder) that say what a judge has to know; with a rubric
    all that generate text.

    Raises:
        ArgumentError: no such file, no such task, no logged samples, or, where scores are `to_write`, a read-only file.
    """
    run = find_runs([path])[0][-1] if path.is_dir() else read_run(path)
    if isinstance(run, Issue):
        raise ArgumentError(str(run))
    found = []
    for task in run.tasks.values():
        fields = judge_fields(task.config) if rubric is None else None
        if fields is None and (rubric is None or task.config.get("output_type", "generate_until") != "generate_until"):
            continue
        samples = [sample for sample in task.samples() if sample.outputs and isinstance(sample.doc, dict)]
        if not samples:
            raise ArgumentError(f"{run.path}, task {task.name}: no logged samples. Run lm_eval with --log_samples.")
        # Before anything is paid: a folder that takes no file would lose the scores afterwards.
        for file in filter(None, (run.path, task.samples_path) if to_write else ()):
            _check_writable(file)
        items = []
        for sample in samples:
            try:
                items.append(
                    item_of(fields or rubric, sample.doc, sample.target, str(sample.outputs[0]), sample.prompt)
                )
            except ArgumentError as error:
                raise ArgumentError(f"{run.path}, task {task.name}, document {sample.doc_id}: {error}") from error
        found.append(JudgeableTask(task, samples, items))
    if not found:
        raise ArgumentError(
            f"{run.path} holds no task for judges (lora_drop_samsum and lora_drop_wmt23_en_zh are). For any other task "
            "that generates text, say in a rubric what judges have to know: --rubric FILE."
        )
    return found


def refuse_fewer(judged: JudgeableTask, scores: PanelScores) -> None:
    """Raises ArgumentError where the files hold more verdicts than `scores`, in all or of a judge that is in both."""
    held = held_scores(judged)
    found = {name: sum(value is not None for value in column) for name, column in scores.by_judge.items()}
    table = judged.run.run.data["results"][judged.run.name]
    told = [value for name, value in table.items() if name.startswith(f"{METRIC}_verdicts,")]
    counted = sum(map(len, held.values()))
    number = max([counted, *(int(value) for value in told if isinstance(value, int | float) and value == value)])
    fewer = [
        f"{name}: {len(old)}, now {found[name]}" for name, old in held.items() if len(old) > found.get(name, len(old))
    ]
    if number > scores.verdicts or fewer:
        why = "; ".join(scores.warnings()) or "the panel is another one"
        raise ArgumentError(
            f"{judged.run.run.path}, {judged.run.name}: holds {number} verdicts; this run has {scores.verdicts}"
            f"{' (' + '; '.join(fewer) + ')' if fewer else ''}. Nothing was written, since they were paid for. "
            f"Cure the cause and repeat the command, or replace them with --force. Cause: {why}"
        )


def held_scores(judged: JudgeableTask) -> dict[str, dict[int, float]]:
    """The verdicts that the samples file holds, as percentages: per judge, by document."""
    held: dict[str, dict[int, float]] = {}
    for sample in judged.samples:
        for metric, value in sample.metrics.items():
            name = metric.removeprefix(f"{METRIC}_")
            value = value[0] if isinstance(value, list) and len(value) == 1 else value
            if name != metric and name not in RESERVED_NAMES and isinstance(value, int | float) and value == value:
                held.setdefault(name, {})[sample.doc_id] = value
    return held


def write_scores(judged: JudgeableTask, scores: PanelScores, *, force: bool = False) -> None:
    """Put the scores into the results file and, per document, into the samples file; both are replaced whole.

    Verdicts of another panel that were there before are kept in the task's metadata, `gpt_score.earlier`.

    Raises:
        ArgumentError: the files hold more verdicts, and not `force`; or one cannot be written (a full disk): the old
            one is still there, the answers are in the cache.
    """
    if not force:
        refuse_fewer(judged, scores)
    run = judged.run
    # As the reader does it: a byte that is no UTF-8 becomes a lone surrogate, and the same byte again when written.
    data = json.loads(run.run.path.read_text(encoding="utf-8", errors="surrogateescape"))
    filter_name = judged.samples[0].filter
    numbers = {METRIC: scores.mean, f"{METRIC}_stderr": scores.stderr}
    numbers |= {f"{METRIC}_verdicts": float(scores.verdicts), f"{METRIC}_agreement": scores.agreement}
    details = scores.to_json()
    numbers |= {f"{METRIC}_{name}": judge["mean"] for name, judge in details["judges"].items()}
    table, better = data["results"][run.name], _table(_table(data, "higher_is_better"), run.name)
    for stale in [name for name in table if name.startswith((f"{METRIC},", f"{METRIC}_"))]:
        del table[stale]
    for name, value in numbers.items():
        table[f"{name},{filter_name}"] = None if value is None or math.isnan(value) else value
    better |= dict.fromkeys((METRIC, *(f"{METRIC}_{judge}" for judge in details["judges"])), True)
    metadata = _table(_table(_table(data, "configs"), run.name), "metadata")
    earlier, held = _table(metadata, RECORD), held_scores(judged)
    details["earlier"] = earlier.pop("earlier", [])
    there = {
        name: {s.doc_id for s, value in zip(judged.samples, column, strict=True) if value is not None}
        for name, column in scores.by_judge.items()
    }
    lost = any(column.keys() - there.get(name, set()) for name, column in held.items())
    if lost or (earlier and what_was_asked(earlier) != what_was_asked(details)):
        details["earlier"] = [*details["earlier"], {**earlier, "percentages": held}]
    metadata[RECORD] = details
    assert run.samples_path is not None
    _replace(run.samples_path, b"".join(_rows(judged, scores, filter_name)))
    _replace(run.run.path, _encode(data, indent=2))


def _rows(judged: JudgeableTask, scores: PanelScores, filter_name: str) -> Iterator[bytes]:
    """The lines of the samples file with the scores in them; a line that is no logged document stays as it is."""
    columns = {name: scores.percentages(name) for name in scores.by_judge}
    per_document = {
        sample.doc_id: {
            METRIC: [percentage],
            **{f"{METRIC}_{name}": [column[index]] for name, column in columns.items()},
        }
        for index, (sample, percentage) in enumerate(zip(judged.samples, scores.per_item, strict=True))
    }
    assert judged.run.samples_path is not None
    with judged.run.samples_path.open("rb") as file:
        for line in file:  # ends at \n only: texts hold Unicode's other line ends
            row = json_object(line.decode("utf-8", "surrogateescape"))
            if row is None or row.get("filter") != filter_name or row.get("doc_id") not in per_document:
                yield line
                continue
            listed = row.get("metrics")
            names = [n for n in listed if not str(n).startswith(METRIC)] if isinstance(listed, list) else []
            row = {name: value for name, value in row.items() if not name.startswith(METRIC)}
            row |= per_document[row["doc_id"]]
            row["metrics"] = [*names, *per_document[row["doc_id"]]]
            yield _encode(row) + b"\n"


def _encode(value: Any, indent: int | None = None) -> bytes:
    """JSON in UTF-8; where a text holds half a surrogate pair, which has no UTF-8, in escapes."""
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent, ensure_ascii=True).encode("ascii")


def _table(data: dict[str, Any], name: str) -> dict[str, Any]:
    """`data[name]`, made a mapping where it is not one."""
    if not isinstance(data.get(name), dict):
        data[name] = {}
    found: dict[str, Any] = data[name]
    return found


def _check_writable(path: Path) -> None:
    if path.is_symlink() or not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
        raise ArgumentError(f"{path} and its folder must be writable, and no symbolic link, to take the scores.")


def _replace(path: Path, content: bytes) -> None:
    """All or nothing: a crash or a full disk leaves the old file."""
    try:
        write_atomically(path, content)
    except ArgumentError as error:
        why = getattr(error.__cause__, "strerror", None) or error
        raise ArgumentError(
            f"{path} cannot be written ({why}). The answers are in the judges' cache: make room, and the same command "
            "costs nothing."
        ) from error
