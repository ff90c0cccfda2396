"""The last screens of ten situations, as printed: what speaks against a choice is said, and no command follows.

`python -m tests.show.verdict.test_screens` writes screens.txt anew; read the difference.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from lm_eval_lora_drop.record.metric import MetricSpec
from lm_eval_lora_drop.record.schema import BoundRecord, DifferenceRecord
from lm_eval_lora_drop.variant import Variant
from testing.recorded_runs import L, boundaries, candidate, results_of, run_record, sweep_record, task_record
from tests.show.listeners.test_screen import evaluated, screen

SCREENS = Path(__file__).with_name("screens.txt")


def right(k, count, documents=32):
    """A candidate with so many of the documents right."""
    items = tuple(float((i * 7) % documents < count) for i in range(documents))
    share = count / documents
    return candidate(Variant.below(k, L), share, (share * (1 - share) / documents) ** 0.5, documents, items=items)


def swept(counts, chosen, documents=32, **fields):
    rows = tuple(right(k, count, documents) for k, count in counts.items())
    full, kept = (next(row for row in rows if row.variant == str(Variant.below(k, L))) for k in (L, chosen))
    gain = (kept.score - full.score, 0.05) if chosen != L else (0.0, 0.0)
    dropped = {} if chosen != L else {"dropped_parameters": 0}
    return task_record(sweep_record(rows, chosen=chosen, gain=gain, **fields), **dropped)


def bounded():
    bound = BoundRecord(
        share=0.99, task=None, of="full", score=0.5, reference=0.625, limit=0.61875, met=False, lower=0.2,
        difference=DifferenceRecord(difference=-0.125, stderr=0.08, documents=12),
    )  # fmt: skip
    return swept({10: 8, 7: 6, 0: 0}, 7, documents=12, select="smallest:0.99", bounds=(bound,))


def missing():
    record = swept({10: 16, 7: 20, 0: 2}, 7)
    row = record.sweep.candidates[1]
    fewer = replace(row, documents=12, items=(*row.items[:12], *[None] * 20))
    rows = (record.sweep.candidates[0], fewer, record.sweep.candidates[2])
    return replace(record, sweep=replace(record.sweep, candidates=rows))


SITUATIONS = {
    "chosen": (swept({10: 8, 7: 30, 0: 2}, 7), 0.9, 0.021),
    "full chosen": (swept({10: 20, 7: 18, 0: 2}, L), 0.6, 0.035),
    "all zero": (swept({10: 0, 7: 0, 0: 0}, L), 0.0, 0.0),
    "all equal": (swept({10: 16, 7: 16, 0: 16}, 7), 0.5, 0.035),
    "too few documents": (swept({10: 2, 7: 3, 0: 1}, 7, documents=4), 0.7, 0.032),
    "bound unmet": (bounded(), 0.25, 0.15),
    "probe": (task_record(variant="0-6", method="probe"), 0.0, 0.0),
    "given": (task_record(variant="0-6"), 0.61, 0.034),
    "test far below": (swept({10: 16, 7: 24, 0: 2}, 7), 0.25, 0.031),
    "missing values": (missing(), 0.6, 0.035),
}


def printed(name):
    task, score, stderr = SITUATIONS[name]
    return screen(results_of(run_record({"task": task}), score=score, stderr=stderr))


@pytest.mark.parametrize("name", SITUATIONS)
def test_the_screen_is_the_one_that_was_read(name):
    stored = SCREENS.read_text(encoding="utf-8")
    assert f"== {name} ==\n{printed(name)}" in stored


@pytest.mark.parametrize("worse", [0.02, 0.35])
def test_lower_is_better_is_far_below_the_other_way_round(worse):
    record = swept({10: 16, 7: 24, 0: 2}, 7)
    lower = replace(record, metric=MetricSpec("rouge_l", "none", False))
    found = screen(results_of(run_record({"t": lower}), score=0.75 + (worse if worse > 0.1 else -worse), stderr=0.03))
    assert ("Caution: The test score" in found) == (worse > 0.1)


def test_candidates_of_one_score_but_a_rounding_apart():
    """A sum in another order is no finding."""
    rows = boundaries({10: 0.1 + 0.2, 7: 0.3, 0: 0.3})
    record = task_record(sweep_record(rows, chosen=7))
    assert "Inconclusive sweep: all 3 candidates, base model included, score" in screen(
        results_of(run_record({"t": record}))
    )


def test_equal_scores_without_the_base_model_are_a_finding():
    """Nothing was lost by dropping: only 0 for all, or the same for the base model, is inconclusive."""
    rows = boundaries({10: 0.9, 7: 0.9})
    assert "Inconclusive" not in screen(results_of(run_record({"t": task_record(sweep_record(rows, chosen=7))})))
    rows = boundaries({10: 0.0, 7: 0.0})
    assert "Inconclusive" in screen(results_of(run_record({"t": task_record(sweep_record(rows, chosen=7))})))


@pytest.mark.parametrize("score", [0.0, 0.25])
def test_where_full_has_a_test_score_nobody_is_told_to_evaluate_it(score):
    """The score is 0, or far below validation: it is to be compared with that of full in the same table."""
    record = swept({10: 16, 7: 24, 0: 2}, 7)
    alone = " ".join(screen(results_of(run_record({"t": record}), score=score, stderr=0.03)).split())
    assert "Evaluate boundary=full on the same test documents" in alone
    found = evaluated(record.metric, v0_6=(score, 0.03, -0.1, -0.2, 0.0), v0_9=(0.5, 0.03))
    both = screen(results_of(run_record({"t": replace(record, evaluated=found)}), score=score, stderr=0.03))
    text = " ".join(both.split())
    assert "Compare it with the test score of the full adapter in the table" in text
    assert "Evaluate boundary=full" not in text
    assert "0.500 ± 0.030" in text


if __name__ == "__main__":
    SCREENS.write_text("".join(f"== {name} ==\n{printed(name)}\n" for name in SITUATIONS), encoding="utf-8")
