"""Fills GPT-Scores into a results file later: what is in the judges' cache is free, the rest is asked now."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.judge.score import Item, Scores
from lm_eval_lora_drop.judge.task import METRIC, RECORD, item_of
from lm_eval_lora_drop.record.find import find_runs, read_run
from lm_eval_lora_drop.record.runs import Issue, Sample, TaskRun


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
        fields = (task.config.get("metadata") or {}).get("judge")
        if not isinstance(fields, dict):
            continue
        samples = [sample for sample in task.samples() if sample.outputs and isinstance(sample.doc, dict)]
        if not samples:
            raise ArgumentError(f"{run.path}, task {task.name}: no logged samples. Run lm_eval with --log_samples.")
        found.append(Judged(task, samples, [item_of(fields, s.doc, s.target, str(s.outputs[0])) for s in samples]))
    if not found:
        raise ArgumentError(
            f"{run.path} holds no task for judges; there are lora_drop_samsum and lora_drop_wmt23_en_zh."
        )
    return found


def write_scores(judged: Judged, scores: Scores) -> None:
    """Put the scores into the results file and, per document, into the samples file; both are replaced whole."""
    run = judged.run
    data = json.loads(run.run.path.read_text(encoding="utf-8"))
    filter_name = judged.samples[0].filter
    numbers = {METRIC: scores.mean, f"{METRIC}_stderr": scores.stderr}
    numbers |= {f"{METRIC}_verdicts": float(scores.verdicts), f"{METRIC}_agreement": scores.agreement}
    details = scores.to_json()
    numbers |= {f"{METRIC}_{name}": judge["mean"] for name, judge in details["judges"].items()}
    table, better = data["results"][run.name], data.setdefault("higher_is_better", {}).setdefault(run.name, {})
    for stale in [name for name in table if name.startswith((f"{METRIC},", f"{METRIC}_"))]:
        del table[stale]
    for name, value in numbers.items():
        table[f"{name},{filter_name}"] = None if value is None or math.isnan(value) else value
    better |= dict.fromkeys((METRIC, *(f"{METRIC}_{judge}" for judge in details["judges"])), True)
    data["configs"][run.name].setdefault("metadata", {})[RECORD] = details
    per_document = {
        sample.doc_id: {
            METRIC: [percentage],
            **{f"{METRIC}_{name}": [_percent(column[index])] for name, column in scores.by_judge.items()},
        }
        for index, (sample, percentage) in enumerate(zip(judged.samples, scores.per_item, strict=True))
    }
    assert run.samples_path is not None
    rows = []
    for line in run.samples_path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line) if line.strip() else {}
        if row.get("filter") == filter_name and row.get("doc_id") in per_document:
            kept = [name for name in row.get("metrics", []) if not name.startswith(METRIC)]
            row = {name: value for name, value in row.items() if not name.startswith(METRIC)}
            row |= per_document[row["doc_id"]]
            row["metrics"] = [*kept, *per_document[row["doc_id"]]]
            line = json.dumps(row, ensure_ascii=False)
        rows.append(line + "\n")
    _replace(run.samples_path, "".join(rows))
    _replace(run.run.path, json.dumps(data, indent=2, ensure_ascii=False))


def _percent(value: int | None) -> float | None:
    return None if value is None else 10.0 * value


def _replace(path: Path, text: str) -> None:
    """All or nothing: a crash leaves the old file."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def summary(name: str, scores: Scores) -> str:
    """A few lines for a terminal."""
    details: dict[str, Any] = scores.to_json()
    lines = [f"{name}: GPT-Score {scores.mean:.2f} % ± {scores.stderr:.2f} on {details['items']} outputs"]
    for judge, found in details["judges"].items():
        shown = "no verdict" if found["mean"] is None else f"{found['mean']:.2f} %"
        lines.append(f"  {judge}: {shown}, {found['verdicts']} verdicts")
    if len(details["judges"]) > 1:
        lines.append(f"  agreement (Krippendorff's alpha): {scores.agreement:.3f}")
    lines.append(f"  {details['calls']} calls, ${details['dollars']:.4f} where prices are known")
    return "\n".join(lines + [f"  warning: {warning}" for warning in details["warnings"]])
