"""The last thing on the screen of `lm_eval run`: what was kept, its scores, the verdict, where everything lies.

Works from the results dictionary of the harness alone, so it needs no model and says the same of a file that is read
again. `harness.hooks.models` has it printed after lm-eval's own tables; a call of `simple_evaluate` in Python prints
nothing.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_lora_drop.harness.evaluation import results_file
from lm_eval_lora_drop.record.schema import RunRecord, TaskRecord, from_config
from lm_eval_lora_drop.show.verdict.answer import TaskVerdict, answers
from lm_eval_lora_drop.text import NOTHING, visible

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 80
"""Columns that a plain log has."""
MOST_TABLES = 3
"""With more tasks than this each gets a line, not a table."""


@dataclass(frozen=True)
class OutputPaths:
    """Where what a run wrote lies. `results` is None without `--output_path`."""

    results: Path | None
    figures: Mapping[str, Path]
    wanted: str | None = None
    """Where the results should have been saved: `--output_path`."""


def render_run(results: Mapping[str, Any], tracker: Any) -> str:
    """The screen of one run as text for standard output, empty if it was none of ours; arguments as of `show_run`."""
    from rich.console import Console

    console = Console(highlight=False)
    with console.capture() as captured:
        show_run(results, tracker, console)
    return captured.get()


def show_run(results: Mapping[str, Any], tracker: Any, console: Console) -> None:
    """Print the screen of one run, if it was one of ours; the figures are drawn into `--output_path`.

    Args:
        results: what `simple_evaluate` returned.
        tracker: the `EvaluationTracker` that has just saved them.
        console: where to.
    """
    record = from_config(results.get("config") or {}, "the results of this run")
    if record is None or not record.tasks:
        return
    file = results_file(tracker)
    places = OutputPaths(file, _figures(record, file), getattr(tracker, "output_path", None))
    # A wide terminal would tear label and number apart.
    console.width = min(console.width, WIDTH)
    print_answers(console, answers(results, record), record, places)


def _figures(record: RunRecord, file: Path | None) -> dict[str, Path]:
    """The figure of every task that had a sweep: beside the results file, else beside the journal."""
    from lm_eval_lora_drop.show.figures.family import save_figure_of
    from lm_eval_lora_drop.show.figures.style import or_warn

    found: dict[str, Path] = {}
    for name, task in record.tasks.items():
        if task.sweep is None:
            continue
        if file is not None:
            drawn = or_warn(functools.partial(save_figure_of, name, task, file.parent, ("png", "svg")))
            found |= {name: drawn[0]} if drawn else {}
        elif task.journal is not None and (beside := Path(task.journal).with_suffix(".png")).is_file():
            found[name] = beside
    return found


def print_answers(console: Console, found: Sequence[TaskVerdict], record: RunRecord, places: OutputPaths) -> None:
    """Print the whole screen: tables and verdicts, then places and the command that exports the choice."""
    from rich.rule import Rule
    from rich.text import Text

    console.print()
    console.print(Rule("lora-drop", align="left", style="dim", characters="-"))
    if len(found) <= MOST_TABLES:
        for answer in found:
            console.print(_text(answer.task, "bold"), soft_wrap=True)
            console.print(_table(answer))
            console.print()
            console.print(_text(answer.verdict, "bold green" if answer.is_smaller and not answer.doubts else "bold"))
            for doubt in answer.doubts:
                console.print(_text(f"Caution: {doubt}", "bold yellow"))
            for note in answer.notes:
                console.print(_text(f"Note: {note}", "yellow"))
            if answer.hint:
                console.print(_text(answer.hint, "dim"))
            console.print()
    else:
        console.print(_one_line_each(found))
        console.print()
    for label, value in _lines(found, record, places):
        # Paths and commands are there to be copied: never cut, never broken by us.
        console.print(Text.assemble((f"{label:9}", "dim"), visible(value)), soft_wrap=True)


def _text(text: str, style: str = "") -> Any:
    """A text of the run: no markup of rich's, nothing that a terminal obeys."""
    from rich.text import Text

    return Text(visible(text), style=style)


def _table(answer: TaskVerdict) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    columns = answer.columns
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading, _ in columns:
        table.add_column(_text(heading), justify="left" if heading == "kept" else "right", overflow="fold")
    for row, cells in zip(answer.rows, zip(*(cells for _, cells in columns), strict=True), strict=True):
        table.add_row(*map(_text, cells), style="bold" if row.is_chosen else "")
    return table


def _one_line_each(found: Sequence[TaskVerdict]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    compared = any(answer.chosen.difference != NOTHING for answer in found)
    headings = (
        "task",
        "kept",
        "validation",
        "test",
        *(["difference to full\npaired, 95 % CI, > 0: better"] if compared else []),
    )
    for heading in headings:
        table.add_column(_text(heading), justify="left" if heading in ("task", "kept") else "right", overflow="fold")
    for answer in found:
        row = answer.chosen
        cells = (answer.task, row.short, row.validation, row.test, *([row.difference] if compared else []))
        table.add_row(*map(_text, cells))
    return table


def _lines(found: Sequence[TaskVerdict], record: RunRecord, places: OutputPaths) -> list[tuple[str, str]]:
    unsaved = (
        f"NOT SAVED: {places.wanted} could not be written (see the log above); copy the tables from this screen"
        if places.wanted
        else "not saved; give --output_path FOLDER to keep them"
    )
    lines = [("Results", str(places.results or unsaved))]
    shown = found if len(found) <= MOST_TABLES else found[:1]
    for answer in shown:
        if answer.task in places.figures:
            lines.append(("Figure", str(places.figures[answer.task])))
        if journal := record.tasks[answer.task].journal:
            lines.append(("Journal", journal))
    lines += [("Export", command) for answer in shown if (command := export_command(answer, record, places.results))]
    if len(shown) < len(found):
        lines.append(("", f"and so on for {len(found) - len(shown)} more tasks"))
    return lines


def export_command(answer: TaskVerdict, record: RunRecord, results: Path | None) -> str | None:
    """The command that writes the kept part as an adapter; None where that is the full adapter or none of it, where
    a doubt speaks against the choice, or where the adapter has no files (it was given as a loaded model)."""
    task: TaskRecord = record.tasks[answer.task]
    if not answer.is_smaller or answer.doubts or record.adapter.path is None:
        return None
    # Of several adapters the variant names the one.
    one = task.kept.adapter
    where = task.variant.replace("@", "-") if one else f"{Path(record.adapter.path).name}-{task.variant}"
    if results is not None:
        parts = ["lora-drop", "export", "--results", str(results)]
        if len(record.tasks) > 1:
            parts += ["--task", answer.task]
    else:
        parts = ["lora-drop", "export", "--peft", record.adapter.path]
        boundary = task.kept.boundary
        parts += ["--layers", task.variant] if boundary is None or one else ["--boundary", str(boundary)]
    return shlex.join([*parts, "--output", where])
