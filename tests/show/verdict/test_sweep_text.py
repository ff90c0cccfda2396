"""What is said of a sweep: a table whose numbers stand alike, sentences that are true, one verdict."""

from dataclasses import replace

import pytest

from lm_eval_lora_drop.record.schema import ValidationRecord
from lm_eval_lora_drop.show.verdict.planning import planning, variations
from lm_eval_lora_drop.show.verdict.stability import _shares
from lm_eval_lora_drop.show.verdict.sweep_text import remarks, sweep_table, verdict
from lm_eval_lora_drop.sweep.recorded import RecordedSweep
from lm_eval_lora_drop.variant import Variant
from testing.recorded_runs import L, boundaries, candidate, curve, noisy, sweep_record, task_record


def told(gap, documents):
    """A sweep of K = 7 against full on items that differ by `gap` up to a little unevenness."""
    items = {k: tuple((gap if k == 7 else 0.0) + (i * 7 + k * i) % 3 / 10 for i in range(documents)) for k in (L, 7)}
    rows = tuple(
        candidate(Variant.below(k, L), sum(mine) / documents, documents=documents, items=mine)
        for k, mine in items.items()
    )
    return verdict(task_record(sweep_record(rows)))


@pytest.mark.parametrize(
    ("gap", "documents", "said"),
    [
        (5.0, 40, "significantly better than the full adapter on 40 validation documents (+"),
        (-5.0, 40, "significantly worse than the full adapter on 40 validation documents (-"),
        (0.0, 40, "not significantly different from the full adapter on 40 validation documents"),
        (5.0, 3, "too few documents for a test against the full adapter on 3 validation documents"),
    ],
)
def test_the_verdict_is_the_evidence_over_all_candidates(gap, documents, said):
    text = told(gap, documents)
    assert text.startswith("Keep the bottom 7 of 10 layers, 30 % smaller: ")
    assert said in text
    assert "simultaneous 95 % CI" in text


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        ((0.6, 0.9), "+0.6 ± 0.9 against the full adapter on the 32 validation documents it was chosen on."),
        ((5.0, None), "+5.0 against the full adapter"),
        ((None, None), "not compared with the full adapter"),
        (None, "not compared with the full adapter"),
    ],
)
def test_without_items_to_resample_the_verdict_claims_nothing(gain, said):
    rows = tuple(replace(row, items=()) for row in curve())
    text = verdict(task_record(sweep_record(rows, gain=gain)))
    assert text.startswith("Keep the bottom 7 of 10 layers, 30 % smaller: ")
    assert said in text
    assert text.endswith(".")


def test_the_verdict_on_full_base_and_what_was_not_searched():
    best = sweep_record(boundaries({10: 2.0, 7: 1.0}), chosen=L)
    assert (
        verdict(task_record(best, dropped_parameters=0))
        == "Keep all 10 layers: no other K scored higher on 32 validation documents."
    )
    assert verdict(task_record(sweep_record(chosen=0), kept_parameters=0, dropped_parameters=9)).startswith(
        "Keep no layer, the base model alone: "
    )
    for method, said in (("given", "(boundary=5)"), ("default", "paper's default"), ("recorded", "choice of another")):
        assert said in verdict(task_record(variant="0-4", method=method))
    for variant, said in (("0-9", "(boundary=full)"), ("none", "(boundary=base)"), ("0-9x0.5", "(layers=0-9x0.5)")):
        assert said in verdict(task_record(variant=variant))
    assert "smaller" not in verdict(task_record(variant="0-9", dropped_parameters=0))
    assert "the 1 validation document it" in verdict(
        task_record(sweep_record(boundaries({7: 1.0, 10: 0.0}, documents=1)))
    )


def test_the_remarks_end_with_the_verdict():
    for record in (
        task_record(sweep_record()),
        task_record(sweep_record(gain=None)),
        task_record(sweep_record(chosen=L)),
    ):
        assert remarks(record)[-1] == verdict(record)


def test_a_difference_far_smaller_than_the_scores_is_not_zero():
    """Scores of ten points with a standard error of 1.5, and a paired difference of 0.03."""
    rows = tuple(
        candidate(
            Variant.below(k, L),
            25.0,
            items=tuple(noisy(1, i) + (0.03 + i % 2 / 500 if k == 7 else 0) for i in range(32)),
        )
        for k in (L, 7)
    )
    assert "(+0.03100; simultaneous 95 % CI +0.02767" in verdict(task_record(sweep_record(rows)))


def test_shares_name_a_few_and_count_the_others():
    of = [Variant.below(k, L) for k in range(L)]
    assert _shares({of[7]: 0.6, Variant.parse("0-9x0.5", L): 0.4}) == "K = 7 (60 %), 0-9x0.5 (40 %)"
    assert _shares(dict.fromkeys(of[:5], 0.2)).count("(20 %)") == 5
    many = _shares({of[7]: 0.5, **dict.fromkeys(of[:5], 0.1)})
    assert many == "K = 7 (50 %), K = 0 (10 %), K = 1 (10 %), K = 2 (10 %), 2 others (20 %)"
    assert "..." not in many


def pair(one, other, **fields):
    """A record of full and K = 7 with these items."""
    rows = tuple(
        candidate(Variant.below(k, L), sum(items) / len(items), documents=len(items), items=tuple(items))
        for k, items in ((L, one), (7, other))
    )
    return task_record(sweep_record(rows), **fields)


def test_a_line_of_planning_says_what_these_documents_can_show():
    """10 of 100 documents change: statsmodels' power of the exact test is behind `power`, here its own words count."""
    full = [1.0] * 50 + [0.0] * 50
    text = planning(pair(full, [0.0] * 5 + full[5:95] + [1.0] * 5))
    assert text.startswith("Minimum detectable difference with 100 documents: 0.088 (80 % power, alpha = 0.05; ")
    assert "10 % of the documents change" in text
    assert " To detect 0.04, use about " in text
    assert sweep_table(pair(full, [0.0] * 5 + full[5:95] + [1.0] * 5)).splitlines()[-1] == text


def test_a_few_documents_show_nothing_and_the_line_says_so():
    assert "Minimum detectable difference with 5 documents: none, too few documents (" in planning(
        pair([1.0, 0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0, 1.0])
    )
    assert planning(pair([1.0], [0.0])) is None


def test_clusters_show_less_than_as_many_documents_would():
    """Four equal documents a cluster: planning is that of a quarter of the documents."""
    one = [((i * 7) % 11) / 10 for i in range(30)]
    two = [((i * 5) % 13) / 10 for i in range(30)]
    alone = planning(pair(one, two))
    copies = [f"passage {i}" for i in range(30) for _ in range(4)]
    validation = ValidationRecord(split="validation", doc_ids=tuple(range(120)), clusters=tuple(copies))
    record = pair([x for x in one for _ in range(4)], [x for x in two for _ in range(4)], validation=validation)
    shown = [float(text.split(" documents: ")[1].split(" (")[0]) for text in (alone, planning(record))]
    # The t distribution of 119 degrees of freedom in place of 29, and two digits.
    assert shown[0] == pytest.approx(shown[1], rel=0.06)
    assert "The documents form 30 clusters; standard errors are by cluster." in remarks(record)


@pytest.mark.parametrize("known", [0, 1])
def test_a_candidate_without_values_does_not_hide_what_the_documents_of_the_others_show(known):
    """A parser that fails under K = 3 leaves it without values; the choice has 32 beside full's."""
    items = {k: tuple(noisy(k, i) if k != 3 or i < known else None for i in range(32)) for k in (L, 7, 3)}
    rows = tuple(candidate(Variant.below(k, L), 25.0 if k != 3 else None, items=mine) for k, mine in items.items())
    without = task_record(sweep_record(tuple(row for row in rows if "2" not in row.variant.split("-")[-1:])))
    record = task_record(sweep_record(rows))
    assert planning(record) is not None
    assert planning(record) == planning(without)
    chosen, *_ = variations(RecordedSweep.from_record(record))
    assert chosen[0] == Variant.below(7, L)
    assert chosen[2].documents == 32


@pytest.mark.parametrize("most", [1, 3, 5, 11, 20])
def test_a_long_table_has_the_named_candidates_and_others_evenly_spread(most):
    record = task_record(sweep_record(boundaries({k: float(k == 6) for k in range(11)}), chosen=6))
    names = [line.split()[0] for line in sweep_table(record, most).splitlines()[2:] if line[:3].strip().isdecimal()]
    assert {"10", "6", "0"} <= set(names)
    assert len(names) == min(max(most, 3), 11)
    assert names == sorted(names, key=int, reverse=True)
    if most == 5:
        assert names == ["10", "7", "6", "2", "0"]
