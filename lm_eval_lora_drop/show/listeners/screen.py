"""The last thing on the screen of `lm_eval run`: what was kept, its scores, the verdict, where everything lies.

Works from the results dictionary of the harness alone, so it needs no model and says the same of a file that is read
again. `harness.hooks.models` has it printed after lm-eval's own tables; a call of `simple_evaluate` in Python prints
nothing.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.harness.evaluation import results_file
from lm_eval_lora_drop.record.schema import RunRecord, from_config
from lm_eval_lora_drop.show.tables import paragraph, table, width
from lm_eval_lora_drop.show.verdict.answer import TaskVerdict, answers
from lm_eval_lora_drop.text import NOTHING, visible

MOST_TABLES = 3
"""With more tasks than this all are in one table, a line each."""


def render_run(results: Mapping[str, Any], tracker: Any) -> str:
    """The screen of one run, "" if it was none of ours; the figures are drawn into `--output_path`.

    Args:
        results: what `simple_evaluate` returned.
        tracker: the `EvaluationTracker` that has just saved them.
    """
    record = from_config(results.get("config") or {}, "the results of this run")
    if record is None or not record.tasks:
        return ""
    found, file = answers(results, record), results_file(tracker)
    parts = [_answer(one) for one in found] if len(found) <= MOST_TABLES else [_one_line_each(found)]
    wanted = getattr(tracker, "output_path", None)
    # Paths and commands are there to be copied: they are never broken.
    parts.append("\n".join(f"{label:9}{value}" for label, value in _paths(found, record, file, wanted)))
    return visible("\n\n".join([f"\n{'lora-drop '.ljust(width(), '-')}", *parts])) + "\n"


def _answer(answer: TaskVerdict) -> str:
    headings, columns = zip(*answer.columns, strict=True)
    rows = table(headings, list(zip(*columns, strict=True)), left=["kept"])
    return "\n".join([answer.task, rows, "", *map(paragraph, [answer.verdict, *answer.remarks])])


def _one_line_each(found: Sequence[TaskVerdict]) -> str:
    headings = ["task", "kept", "validation", "test", "difference to full\npaired, 95 % CI, > 0: better"]
    rows = [[one.task, row.name, row.validation, row.test, row.difference] for one in found for row in [one.chosen]]
    shown = len(headings) - all(row[-1] == NOTHING for row in rows)
    return table(headings[:shown], [row[:shown] for row in rows], left=["task", "kept"])


def _paths(
    found: Sequence[TaskVerdict], record: RunRecord, file: Path | None, wanted: str | None
) -> list[tuple[str, str]]:
    unsaved = (
        f"NOT SAVED: {wanted} could not be written (see the log above); copy the tables from this screen"
        if wanted
        else "not saved; give --output_path FOLDER to keep them"
    )
    lines = [("Results", str(file or unsaved))]
    figures = _figures(record, file)
    shown = found if len(found) <= MOST_TABLES else found[:1]
    for answer in shown:
        if answer.task in figures:
            lines.append(("Figure", str(figures[answer.task])))
        if journal := record.tasks[answer.task].journal:
            lines.append(("Journal", journal))
    lines += [("Export", command) for answer in shown if (command := export_command(answer, record, file))]
    if len(shown) < len(found):
        lines.append(("", f"and so on for {len(found) - len(shown)} more tasks"))
    return lines


def _figures(record: RunRecord, file: Path | None) -> dict[str, Path]:
    """The figure of every task that had a sweep: beside the results file, else beside the journal."""
    from lm_eval_lora_drop.show.figures.candidates import save_figures_of
    from lm_eval_lora_drop.show.figures.style import file_name, or_warn

    found: dict[str, Path] = {}
    for name, task in record.tasks.items():
        if task.sweep is None:
            continue
        if file is not None:
            stem = file.with_name(f"sweep-{file_name(name)}")
            drawn = or_warn(functools.partial(save_figures_of, name, task, stem, ("png", "svg"), record))
            found |= {name: drawn[0]} if drawn else {}
        elif task.journal is not None and (beside := Path(task.journal).with_suffix(".png")).is_file():
            found[name] = beside
    return found


def export_command(answer: TaskVerdict, record: RunRecord, results: Path | None) -> str | None:
    """The command that writes the kept part as an adapter; None where that is the full adapter or none of it, where
    a doubt speaks against the choice, or where the adapter has no files (it was given as a loaded model)."""
    task = record.tasks[answer.task]
    if not answer.is_smaller or answer.doubts or record.adapter.path is None:
        return None
    # Of several adapters the variant names the one.
    one, boundary = task.kept.adapter, task.kept.boundary
    name = task.variant if boundary is None else f"K{boundary}"
    where = task.variant.replace("@", "-") if one else f"{Path(record.adapter.path).name}-{name}"
    if results is not None:
        parts = ["lora-drop", "export", "--results", str(results)]
        if len(record.tasks) > 1:
            parts += ["--task", answer.task]
    else:
        parts = ["lora-drop", "export", "--peft", record.adapter.path]
        parts += ["--layers", task.variant] if boundary is None or one else ["--boundary", str(boundary)]
    return shlex.join([*parts, "--output", where])
