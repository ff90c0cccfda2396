"""Fills GPT-Scores into a results file later: what is in the judges' cache is free, the rest is asked now."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import write_atomically
from lm_eval_lora_drop.judge.panel import Panel
from lm_eval_lora_drop.judge.score import Item, Scores
from lm_eval_lora_drop.judge.spending import Bill
from lm_eval_lora_drop.judge.task import METRIC, RECORD, item_of, judge_fields
from lm_eval_lora_drop.record.find import find_runs, read_run
from lm_eval_lora_drop.record.runs import Issue, Sample, TaskRun, json_object
from lm_eval_lora_drop.rounding import decimals_for, number, with_error


@dataclass
class Judged:
    """A task of a results file whose outputs judges can score; item i is sample i."""

    run: TaskRun
    samples: list[Sample]
    items: list[Item]


def judged_tasks(path: Path) -> list[Judged]:
    """The tasks of a results file (or of the newest one in a folder) that say what a judge has to know.

    Raises:
        ArgumentError: no such file, no such task, or no logged samples.
    """
    run = find_runs([path])[0][-1] if path.is_dir() else read_run(path)
    if isinstance(run, Issue):
        raise ArgumentError(str(run))
    found = []
    for task in run.tasks.values():
        fields = judge_fields(task.config)
        if fields is None:
            continue
        samples = [sample for sample in task.samples() if sample.outputs and isinstance(sample.doc, dict)]
        if not samples:
            raise ArgumentError(f"{run.path}, task {task.name}: no logged samples. Run lm_eval with --log_samples.")
        # Before anything is paid: a folder that takes no file would lose the scores afterwards.
        for file in filter(None, (run.path, task.samples_path)):
            _check_writable(file)
        items = []
        for sample in samples:
            try:
                items.append(item_of(fields, sample.doc, sample.target, str(sample.outputs[0])))
            except ArgumentError as error:
                raise ArgumentError(f"{run.path}, task {task.name}, document {sample.doc_id}: {error}") from error
        found.append(Judged(task, samples, items))
    if not found:
        raise ArgumentError(
            f"{run.path} holds no task for judges; there are lora_drop_samsum and lora_drop_wmt23_en_zh."
        )
    return found


def write_scores(judged: Judged, scores: Scores) -> None:
    """Put the scores into the results file and, per document, into the samples file; both are replaced whole.

    Raises:
        ArgumentError: a file cannot be written (a full disk); the old one is still there, the answers are in the cache.
    """
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
    _table(_table(_table(data, "configs"), run.name), "metadata")[RECORD] = details
    assert run.samples_path is not None
    _replace(run.samples_path, b"".join(_rows(judged, scores, filter_name)))
    _replace(run.run.path, _encode(data, indent=2))


def _rows(judged: Judged, scores: Scores, filter_name: str) -> Iterator[bytes]:
    """The lines of the samples file with the scores in them; a line that is no logged document stays as it is."""
    per_document = {
        sample.doc_id: {
            METRIC: [percentage],
            **{f"{METRIC}_{name}": [_percent(column[index])] for name, column in scores.by_judge.items()},
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
    """`data[name]`, made a mapping where it is none."""
    if not isinstance(data.get(name), dict):
        data[name] = {}
    found: dict[str, Any] = data[name]
    return found


def _percent(value: int | None) -> float | None:
    return None if value is None else 10.0 * value


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


def summary(name: str, scores: Scores) -> str:
    """A few lines for a terminal."""
    details: dict[str, Any] = scores.to_json()
    lines = [f"{name}: GPT-Score {with_error(scores.mean, scores.stderr)} % on {details['items']} outputs"]
    for judge, found in details["judges"].items():
        shown = "no verdict" if found["mean"] is None else f"{number(found['mean'], decimals_for(scores.stderr))} %"
        lines.append(f"  {judge}: {shown}, {found['verdicts']} verdicts")
    if len(details["judges"]) > 1:
        lines.append(f"  agreement (Krippendorff's alpha): {number(scores.agreement, 2)}")
    lines.append(f"  {bill_line(scores.answers.bill, scores.panel)}")
    return "\n".join(lines + [f"  warning: {warning}" for warning in details["warnings"]])


def bill_line(bill: Bill, panel: Panel) -> str:
    """What this command used, what these questions have used in all, and what is left."""
    said = f"{bill.calls} calls, ${bill.dollars:.4f} where prices are known"
    if bill.calls_before:
        said += f"; with earlier runs {bill.calls + bill.calls_before} calls, ${bill.dollars_in_all:.4f}"
    if bill.perhaps:
        said += f"; {bill.perhaps} calls without an answer are counted as billed"
    if panel.max_spend is not None:
        said += f"; ${max(0.0, panel.max_spend - bill.dollars_in_all):.4f} of ${panel.max_spend:g} left"
    return said
