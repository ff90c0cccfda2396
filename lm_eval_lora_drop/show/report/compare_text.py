"""A comparison as a reader of the terminal sees it."""

from __future__ import annotations

import textwrap

from tabulate import tabulate

from lm_eval_lora_drop.show.report.compare import MetricComparison, SystemComparison, TaskComparison
from lm_eval_lora_drop.show.report.judged import judged_metric
from lm_eval_lora_drop.show.report.outputs import ErrorAnalysis
from lm_eval_lora_drop.text import decimals_of_difference, number, p_value, percent, significant

_WIDTH = 120


def render(found: SystemComparison) -> str:
    """The tables, the error analysis and what had to be left out."""
    names = letters(len(found.others) + 1)
    labels = [found.baseline, *found.others]
    head = [
        f"{name}  {label}" + ("  (baseline)" if name == "A" else "") for name, label in zip(names, labels, strict=True)
    ]
    parts = ["\n".join(head)]
    parts += [_task(task, dict(zip(labels, names, strict=True)), len(found.others)) for task in found.tasks]
    parts.append(textwrap.fill(_legend(found), _WIDTH))
    parts += [f"Not compared, task {task}: {'; '.join(reasons)}." for task, reasons in found.refused.items()]
    parts += [f"Note: {note}" for note in found.notes]
    return "\n\n".join(parts)


def _legend(found: SystemComparison) -> str:
    text = (
        f"Interval: {percent(found.level)}; it contains 0 exactly if p is at least "
        f"{number(1 - found.level, 2)}. p: two-sided. "
        "p (Holm): a task's first metric, corrected over the tasks that the two systems share"
    )
    if len(found.others) > 1:
        text += (
            f"; p (all): corrected over all {found.tests} of these tests, for the question whether any system differs"
        )
    text += ". gained/lost: documents on which the second system scores better/worse."
    if any(task.clusters is not None for task in found.tasks):
        text += " clusters: documents that belong together by the task's own word; they are exchanged together."
    if any("draws" in row.test for task in found.tasks for row in task.metrics):
        text += f" Seed {found.seed}, {found.resamples:,} draws where not every exchange was tried."
    return text


def letters(count: int) -> list[str]:
    """Short names of `count` systems: A, B, ..., Z, S27, ..."""
    return [chr(ord("A") + index) if index < 26 else f"S{index + 1}" for index in range(count)]


def _task(task: TaskComparison, names: dict[str, str], others: int) -> str:
    rows = []
    for row in task.metrics:
        metric = row.metric if row.filter == "none" else f"{row.metric},{row.filter}"
        places = decimals_of_difference(row.difference, row.interval)
        arrow = {True: " ↑", False: " ↓", None: ""}[row.higher_is_better]
        rows.append(
            [
                f"A → {names[row.other]}",
                metric + arrow,
                _score(row, number(row.baseline_score, places)),
                _score(row, number(row.other_score, places)),
                _score(row, number(row.difference, places, sign=True)),
                _interval(row, places),
                p_value(row.p_value),
                p_value(row.p_holm),
                p_value(row.p_table),
                "" if row.gained is None else f"{row.gained}/{row.lost}",
                _test_name(row),
            ]
        )
    headers = ["", "metric", "A", "B", "difference", "95 % interval", "p", "p (Holm)", "p (all)", "gained/lost", "test"]
    # With one pair of systems its name says nothing, and the two corrections are the same.
    shown = [index for index, head in enumerate(headers) if others > 1 or head not in ("", "p (all)")]
    table = tabulate(
        [[row[index] for index in shown] for row in rows],
        [headers[index] for index in shown],
        disable_numparse=True,
        tablefmt="simple",
    )
    clusters = "" if task.clusters is None else f" in {task.clusters} clusters"
    title = f"Task {task.task}, version {task.version}, {task.documents} documents{clusters}"
    notes = dict.fromkeys(
        f"{names[r.other]}, {r.metric}: {r.note}" for r in task.metrics if judged_metric(r.metric) and r.note
    )
    below = [textwrap.fill(note, _WIDTH) for note in notes]
    return "\n\n".join(
        [f"{title}\n\n{table}", *below, *(_errors(errors, names[errors.other]) for errors in task.errors)]
    )


def _score(row: MetricComparison, text: str) -> str:
    return f"[{text}]" if row.bracket else text


def _interval(row: MetricComparison, places: int) -> str:
    if row.interval is None:
        return ""
    return " to ".join(number(end, places, sign=True) for end in row.interval)


def _test_name(row: MetricComparison) -> str:
    return "not comparable" if row.bracket else row.test.split(",")[0] or row.note


def _errors(errors: ErrorAnalysis, name: str) -> str:
    if errors.contain is None:
        return f"{name} scores lower than A on no document ({errors.metric})."
    lines = [
        f"Where {name} scores lower than A ({errors.metric}): {errors.worse} of {errors.documents} documents.",
        f"  {percent(errors.contain)} of these outputs contain A's output.",
        f"  Length: {_ratio(errors.length_ratio)} characters for each of A's there, {_ratio(errors.length_ratio_all)} "
        "over all documents.",
        f"  More than one word: {percent(errors.over_one_word_baseline)} of A's outputs, "
        f"{percent(errors.over_one_word_other)} of {name}'s.",
    ]
    if errors.worst:
        lines.append("  The worst first:")
    for document in errors.worst:
        lines.append(f"    doc_id {document['doc_id']}, {significant(document['loss'])} lower")
        for who, text in (("reference", document["target"]), ("A", document["baseline"]), (name, document["other"])):
            lines.append(f"      {who:<9} {textwrap.shorten(text, _WIDTH, placeholder=' ...')}")
    return "\n".join(lines)


def _ratio(value: float | None) -> str:
    return "no" if value is None else number(value, 2)
