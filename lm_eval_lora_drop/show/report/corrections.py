"""Which tests are corrected together, stated once for compare, leaderboard and report.

The question is "does this system differ from the baseline?", so the tests of one pair of systems are corrected
together: one for each task they share, on the task's first metric (or the first one asked for). `p (Holm)` does not
depend on what else is in the table, so that a pair has the same p everywhere. Other metrics of a task are described by
their plain p-value. Where several systems are held against one baseline, some pair will look different by chance; for
that question ("does any?") there is the correction over all tests of the table, `p_table`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from lm_eval_lora_drop.record.runs import TaskRun
from lm_eval_lora_drop.statistics.significance import holm


def first_metric(task: TaskRun, wanted: Sequence[str] = ()) -> tuple[str, str] | None:
    """Metric and filter that stand for a task: its first, or the first of `wanted` (`metric` or `task:metric`) that it
    has; None where it has none of them."""
    named = [
        metric.removeprefix(f"{task.name}:")
        for metric in wanted
        # `task:metric` speaks of its task only.
        if ":" not in metric or metric.startswith(f"{task.name}:")
    ]
    keys = list(task.scores)
    chosen = [key for metric in named for key in keys if key[0] == metric] if named else keys
    return chosen[0] if chosen else None


def corrected(pairs: Sequence[Hashable], p_values: Sequence[float]) -> list[tuple[float, float]]:
    """`(p_holm, p_table)` of each test: corrected within its pair, and over all of them.

    `pairs[i]` names the two systems of test i; a pair's tests need not stand together.
    """
    table = holm(p_values)
    within = list(table)
    for pair in set(pairs):
        rows = [row for row, name in enumerate(pairs) if name == pair]
        for row, value in zip(rows, holm([p_values[row] for row in rows]), strict=True):
            within[row] = value
    return list(zip(within, table, strict=True))
