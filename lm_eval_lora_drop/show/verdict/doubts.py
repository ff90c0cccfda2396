"""What a run knows that speaks against its own choice: said on the last screen, before anybody exports it."""

from __future__ import annotations

import math

from lm_eval_lora_drop.record.metric import MetricSpec
from lm_eval_lora_drop.record.runs import Score
from lm_eval_lora_drop.record.schema import SweepRecord, TaskRecord
from lm_eval_lora_drop.text import decimals_of_column, number
from lm_eval_lora_drop.variant import Variant

_LOOK = "Check the prompt, the task's filter and max_gen_toks (--log_samples shows the outputs)"
_FAR = 2.0
"""Standard errors between two scores on different documents that are taken for more than chance."""
_LARGE = 0.1
"""The least share of the validation score that is lost then."""


def inconclusive(sweep: SweepRecord) -> str | None:
    """Why a sweep is inconclusive: all its candidates score 0, or all the same, base model included; else None.

    Without the base model equal scores are a finding: nothing is lost by what was dropped.
    """
    scores = [row.score for row in sweep.candidates if row.score is not None and math.isfinite(row.score)]
    if len(scores) < 2 or max(scores) - min(scores) > 1e-9 * max(1.0, *map(abs, scores)):
        return None
    base = any(row.variant.rpartition("@")[2] == "none" for row in sweep.candidates)
    if scores[0] != 0 and not base:
        return None
    score = number(scores[0], decimals_of_column((row.score, row.stderr) for row in sweep.candidates))
    hint = _LOOK if scores[0] == 0 else "Use more documents (sweep_limit), or another sweep_metric"
    all_of_them = f"all {len(scores)} candidates{', base model included,' if base else ''} score {score}"
    return f"Inconclusive sweep: {all_of_them}. {hint}."


def doubts(task: TaskRecord, metric: MetricSpec | None, test: Score | None, documents: int | None) -> list[str]:
    """A sentence for each reason against the choice, with what to do.

    `test` is the score by `metric` on `documents` documents of the test split; None if there is none.
    """
    found = []
    for bound in task.sweep.bounds if task.sweep is not None else ():
        if bound.difference is None or bound.shown:
            continue
        which = f"{100 * bound.share:g} % of the {'full adapter' if bound.of == 'full' else 'base model'}'s score"
        which += f" on {bound.task}" if bound.task else ""
        found.append(
            f"Threshold {'met, but not significantly' if bound.met else 'not met'}: {which}. "
            "Use more documents (sweep_limit), or sweep_select=smallest_confident:SHARE."
        )
    if test is None or metric is None or task.kept.is_base or (task.sweep is not None and inconclusive(task.sweep)):
        return found
    if test.value == 0 and metric.higher_is_better:
        beside = "" if task.kept.is_full else f" {_beside_full(task)}."
        return [*found, f"The test score is 0. {_LOOK}.{beside}"]
    row = task.sweep.candidate(task.sweep.chosen) if task.sweep is not None else None
    if row is None or row.score is None or row.stderr is None or metric != task.metric:
        return found
    # Few documents may all score alike: then validation's standard error stands for both.
    stderr = test.stderr or row.stderr * math.sqrt(row.documents / (documents or row.documents))
    both = math.hypot(row.stderr, stderr)
    loss = (row.score - test.value) * (1 if metric.higher_is_better else -1)
    # Two splits of one data set may differ a little in how hard they are; of many documents that is significant too.
    if both > 0 and loss > max(_FAR * both, _LARGE * abs(row.score)):
        found.append(
            f"The test score is {loss / both:.1f} standard errors worse than the validation score."
            + ("" if task.kept.is_full else f" {_beside_full(task)} before using this choice.")
        )
    return found


def _beside_full(task: TaskRecord) -> str:
    """How to see what the full adapter scores on the same test documents."""
    rows = task.evaluated.rows if task.evaluated is not None else ()
    if any(Variant.parse(row.variant, task.num_layers).is_full for row in rows):
        return "Compare it with the test score of the full adapter in the table"
    return "Evaluate boundary=full on the same test documents"
