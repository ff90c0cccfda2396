"""A comparison as a reader of the terminal sees it."""

from __future__ import annotations

import textwrap

from tabulate import tabulate

from lm_eval_lora_drop.report.compare import Comparison, MetricComparison, TaskComparison
from lm_eval_lora_drop.report.outputs import ErrorAnalysis

_WIDTH = 120


def render(found: Comparison) -> str:
    """The tables, the error analysis and what had to be left out."""
    names = letters(len(found.others) + 1)
    labels = [found.baseline, *found.others]
    head = [
        f"{name}  {label}" + ("  (baseline)" if name == "A" else "") for name, label in zip(names, labels, strict=True)
    ]
    parts = ["\n".join(head)]
    parts += [_task(task, dict(zip(labels, names, strict=True)), len(found.others)) for task in found.tasks]
    parts.append(
        textwrap.fill(
            f"Interval: {found.level:.0%}, paired bootstrap over documents. p: two-sided. p (Holm): corrected for the "
            f"{found.tests} tests of this comparison. gained/lost: documents on which the second system scores "
            f"better/worse. Seed {found.seed}, {found.resamples} resamples.",
            _WIDTH,
        )
    )
    parts += [f"Not compared, task {task}: {'; '.join(reasons)}." for task, reasons in found.refused.items()]
    parts += [f"Note: {note}" for note in found.notes]
    return "\n\n".join(parts)


def letters(count: int) -> list[str]:
    """Short names of `count` systems: A, B, ..., Z, S27, ..."""
    return [chr(ord("A") + index) if index < 26 else f"S{index + 1}" for index in range(count)]


def _task(task: TaskComparison, names: dict[str, str], others: int) -> str:
    rows = []
    for row in task.metrics:
        metric = row.metric if row.filter == "none" else f"{row.metric},{row.filter}"
        arrow = {True: " ↑", False: " ↓", None: ""}[row.higher_is_better]
        rows.append(
            [
                f"A → {names[row.other]}",
                metric + arrow,
                f"{row.baseline_score:.4g}",
                f"{row.other_score:.4g}",
                f"{row.difference:+.3g}",
                "" if row.interval is None else f"[{row.interval[0]:+.3g}, {row.interval[1]:+.3g}]",
                p_text(row.p_value),
                p_text(row.p_holm),
                "" if row.gained is None else f"{row.gained}/{row.lost}",
                _test_name(row),
            ]
        )
    if others == 1:
        rows = [row[1:] for row in rows]
    headers = ["", "metric", "A", "B", "difference", "95 % interval", "p", "p (Holm)", "gained/lost", "test"]
    table = tabulate(rows, headers[1:] if others == 1 else headers, disable_numparse=True, tablefmt="simple")
    title = f"Task {task.task}, version {task.version}, {task.documents} documents"
    return "\n\n".join([f"{title}\n\n{table}", *(_errors(errors, names[errors.other]) for errors in task.errors)])


def p_text(p: float | None) -> str:
    """A p-value with two digits of its own, never 0."""
    if p is None:
        return ""
    return f"{p:.3f}" if p >= 0.0995 else f"{p:.2g}"


def _test_name(row: MetricComparison) -> str:
    return row.note or row.test.split(",")[0]


def _errors(errors: ErrorAnalysis, name: str) -> str:
    if not errors.worse:
        return f"{name} scores lower than A on no document ({errors.metric})."
    lines = [
        f"Where {name} scores lower than A ({errors.metric}): {errors.worse} of {errors.documents} documents.",
        f"  {errors.contain:.0%} of these outputs contain A's output.",
        f"  Length: {_ratio(errors.length_ratio)} characters for each of A's there, {_ratio(errors.length_ratio_all)} "
        "over all documents.",
        f"  More than one word: {errors.over_one_word_baseline:.0%} of A's outputs, {errors.over_one_word_other:.0%} "
        f"of {name}'s.",
    ]
    if errors.worst:
        lines.append("  The worst first:")
    for document in errors.worst:
        lines.append(f"    doc_id {document['doc_id']}, {document['loss']:.3g} lower")
        for who, text in (("reference", document["target"]), ("A", document["baseline"]), (name, document["other"])):
            lines.append(f"      {who:<9} {textwrap.shorten(text, _WIDTH, placeholder=' ...')}")
    return "\n".join(lines)


def _ratio(value: float | None) -> str:
    return "no" if value is None else f"{value:.2f}"
