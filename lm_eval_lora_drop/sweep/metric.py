"""Which of a task's metrics a sweep optimises, and in which direction."""

from __future__ import annotations

import ast
import functools
import inspect
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness.facts.scoring import filter_names, metric_names
from lm_eval_lora_drop.record.fingerprint import described, digest_file
from lm_eval_lora_drop.record.metric import MetricSpec
from lm_eval_lora_drop.statistics.aggregation import Aggregation
from lm_eval_lora_drop.text import did_you_mean, shown

_SCORED_BY = ("process_docs", "doc_to_choice", "doc_to_target", "process_results", "metric_list", "filter_list")


def scoring_of(task: Any) -> list[Any]:
    """What the scores of given answers depend on, as JSON has it: the task's settings, and the content of the files
    whose functions they name, with what these import from their own folder."""
    settings = [getattr(task.config, name, None) for name in _SCORED_BY]
    files: set[Path] = set()
    todo = [*settings, type(task).process_results]
    while todo:
        one = todo.pop()
        todo += list(one.values()) if isinstance(one, dict) else one if isinstance(one, list) else []
        if isinstance(one, functools.partial):
            todo += [one.func, *one.args, *one.keywords.values()]
        elif callable(one):
            code = inspect.unwrap(one)
            try:
                file = inspect.getsourcefile(code if inspect.isroutine(code) else type(code).__call__)
            except TypeError:  # built in
                continue
            if file:
                path = Path(file).absolute()
                _add_with_imports(path, path.parent, files)
    return [described(settings), sorted(digest_file(file) for file in files)]


def _add_with_imports(file: Path, folder: Path, files: set[Path]) -> None:
    """Add a file of Python code, and the files below `folder` that it imports, and theirs."""
    if file in files or not file.is_file():
        return
    files.add(file)
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # of another Python; nobody has loaded it
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names, beside = [alias.name for alias in node.names], file.parent
        elif isinstance(node, ast.ImportFrom):
            names = [".".join(filter(None, (node.module, alias))) for alias in ("", *(one.name for one in node.names))]
            beside = file.parents[min(max(node.level, 1), len(file.parents)) - 1]
        else:
            continue
        for name in names:
            path = beside.joinpath(*name.split("."))
            loaded = Path(getattr(sys.modules.get(name), "__file__", None) or "")
            for found in (loaded, path.parent / f"{path.name}.py", path / "__init__.py"):
                # An environment may lie in the folder too.
                if found.suffix == ".py" and found.is_relative_to(folder) and "site-packages" not in found.parts:
                    _add_with_imports(found, folder, files)


def resolve_metric(task: Any, sweep_metric: str | None) -> MetricSpec:
    """The metric that `sweep_metric` names: `metric` or `metric,filter`; by default the task's first of each.

    `task` is an lm-eval task. A metric function that returns a dict counts by the names in it, as lm-eval prints them
    (`pass_at_k` gives `pass@1`). Metrics that only a `process_results` function computes count if `metric_list` (or the
    `aggregation()` of a task written as a class) names them.

    Raises:
        ArgumentError: the task has no such metric or filter, no metric at all, or the metric has no direction.
    """
    name, _, filter_name = (part.strip() for part in (sweep_metric or "").partition(","))
    metrics = [metric for metric in metric_names(task) if metric != "bypass"]
    filters = filter_names(task)
    if not metrics:
        raise ArgumentError(
            f"a sweep needs a metric, and task {task.task_name} has none (--predict_only removes a task's metrics). "
            "Leave --predict_only out, or give the boundary: boundary=K."
        )
    if name and name not in metrics:
        raise ArgumentError(f"sweep_metric must name a metric of task {task.task_name}, {_choices(name, metrics)}")
    if filter_name and filter_name not in filters:
        raise ArgumentError(
            f"sweep_metric must name a filter of task {task.task_name} after the metric, "
            f"{_choices(filter_name, filters)}"
        )
    name = name or metrics[0]
    direction = task.higher_is_better().get(name)
    if not isinstance(direction, bool):
        directed = [metric for metric in metrics if isinstance(task.higher_is_better().get(metric), bool)]
        raise ArgumentError(
            f"sweep_metric must be a metric with a direction, and {name} of task {task.task_name} has none "
            f"(higher_is_better: {direction}). "
            + (f"There are: {', '.join(directed)}." if directed else "Set higher_is_better in the task's metric_list.")
        )
    return MetricSpec(name, filter_name or filters[0], direction, score_range(task, name))


_UNIT = (0.0, 1.0)
RANGES = {
    **dict.fromkeys(("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match"), _UNIT),
    **dict.fromkeys(("contains_em", "em", "f1", "one_word", "json_valid", "schema_valid", "field_f1"), _UNIT),
    **dict.fromkeys(("cut_off", "empty", "unread"), _UNIT),
    **dict.fromkeys(("rouge_l", "rouge_1", "rouge_2"), (0.0, 100.0)),
}
"""Per document, of lm-eval's own metrics and those of this package's tasks that are means of bounded scores."""


def score_range(task: Any, name: str) -> tuple[float, float] | None:
    """Between which values a document's score lies: `metadata: {range: [LOW, HIGH]}`, or by metric `{range: {NAME:
    [LOW, HIGH]}}`; else what is known of a mean of this name. None where nobody says.

    Raises:
        ArgumentError: the metadata's range is invalid.
    """
    given = _of_metric(task, "range", name)
    if given is None:
        known = RANGES.get(name.removesuffix("_bridge").removesuffix("_comparison"))
        return known if Aggregation(task.aggregation()[name]).is_mean else None
    ends = given if isinstance(given, Sequence) and not isinstance(given, str) else ()
    if len(ends) != 2 or not all(_is_number(end) for end in ends) or not ends[0] < ends[1]:
        raise ArgumentError(
            f"task {task.task_name}: metadata.range must be [LOW, HIGH], the range of a document's score, "
            f"got {given!r}. Write range: [0, 1], or range: {{{name}: [0, 1]}}."
        )
    return float(ends[0]), float(ends[1])


def missing_value(task: Any, name: str) -> float | None:
    """What a document without a value counts as: `metadata: {missing: VALUE}`, or by metric; None: it is left out.

    Raises:
        ArgumentError: the metadata's value is no number.
    """
    given = _of_metric(task, "missing", name)
    if given is not None and not _is_number(given):
        raise ArgumentError(
            f"task {task.task_name}: metadata.missing must be the score of a document without one, got {given!r}. "
            f"Write missing: 0, or missing: {{{name}: 0}}."
        )
    return None if given is None else float(given)


def _of_metric(task: Any, key: str, name: str) -> Any:
    metadata = task.config.metadata
    given = metadata.get(key) if isinstance(metadata, Mapping) else None
    return given.get(name) if isinstance(given, Mapping) else given


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _choices(came: str, there_are: Sequence[str]) -> str:
    return f"got {shown(came)!r}. There are: {', '.join(there_are)}.{did_you_mean(came, there_are)}"
