"""Metrics that only some documents have, and documents that are logged twice, in `compare`."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from lm_eval_lora_drop.record.runs import Documents, Score
from lm_eval_lora_drop.show.report.compare import compare_metric
from lm_eval_lora_drop.statistics.randomisation import mcnemar


def run(values, doc_ids=None):
    """A task's run with these scores, as far as a test of one metric reads it."""
    known = [one for one in values if one is not None]
    ids = tuple(range(len(values))) if doc_ids is None else doc_ids
    return SimpleNamespace(
        scores={("em", "none"): Score(float(np.mean(known)), None)},
        higher_is_better={"em": True},
        documents={"none": Documents(ids, (("", "", ""),) * len(values), {"em": values})},
        aggregations={"em": "nanmean"},
        config={},
    )


def test_the_test_is_on_documents_with_a_value_on_both_sides():
    """Seven gained, one lost of 25 documents that both have; 75 have none, and five are the first system's alone."""
    one = [0.0] * 7 + [1.0] * 18 + [None] * 70 + [1.0] * 5
    two = [1.0] * 7 + [0.0] + [1.0] * 17 + [None] * 75
    found = compare_metric(run(one), run(two), "two", "em", "none")
    assert found.p_value == pytest.approx(mcnemar(7, 1))
    assert found.difference == pytest.approx(6 / 25)
    assert (found.gained, found.lost) == (7, 1)
    assert "25 of 100 documents" in found.test


def test_documents_that_are_logged_twice_are_not_tested():
    values = [1.0, 0.0, 0.0] * 8
    found = compare_metric(run(values, (0, 0, 1) * 8), run([1.0] * 24, (0, 0, 1) * 8), "two", "em", "none")
    assert found.p_value is None
    assert "logged more than once" in found.note
