"""Planning: power against enumeration and simulation, and the two questions as each other's inverse."""

import numpy as np
import pytest
from scipy import stats

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.statistics.power import (
    PairedVariation,
    detectable_difference,
    documents_needed,
    duration,
    mcnemar_power,
    power_of,
    sentence,
    variation,
)
from lm_eval_lora_drop.statistics.randomisation import mcnemar
from lm_eval_lora_drop.statistics.significance import mean_p_values


@pytest.mark.parametrize(("n", "difference", "discordance"), [(12, 0.3, 0.4), (25, 0.2, 0.2), (30, 0.05, 0.5)])
def test_mcnemar_power_equals_enumeration(n, difference, discordance):
    """Every table of n documents, with its trinomial probability."""
    gained, lost = (discordance + difference) / 2, (discordance - difference) / 2
    want = sum(
        stats.multinomial.pmf([b, c, n - b - c], n, [gained, lost, 1 - gained - lost])
        for b in range(n + 1)
        for c in range(n - b + 1)
        if mcnemar(b, c) < 0.05
    )
    assert mcnemar_power(n, difference, discordance) == pytest.approx(want, abs=1e-9)


def test_the_stated_difference_is_found_at_the_stated_rate():
    """2,000 samples each: a 0/1 metric and a numeric one reject in 80 %, within simulation error."""
    rng = np.random.default_rng(0)
    known = PairedVariation.of_share(0.2)
    d = detectable_difference(100, known)
    u = rng.random((100, 2000))
    changes = (u < (0.2 + d) / 2).astype(float) - ((u >= (0.2 + d) / 2) & (u < 0.2))
    assert np.mean(np.array(mean_p_values(changes)) < 0.05) == pytest.approx(0.8, abs=0.03)
    d = detectable_difference(100, PairedVariation.of_spread(9.0))
    changes = rng.normal(d, 9.0, (100, 2000))
    assert np.mean(np.array(mean_p_values(changes, draws=999)) < 0.05) == pytest.approx(0.8, abs=0.03)


def test_known_magnitudes():
    """10 % discordance: some 2,000 documents for two points; 100 documents show 9. Five documents show nothing."""
    known = PairedVariation.of_share(0.1)
    assert documents_needed(0.02, known) == pytest.approx(2000, rel=0.05)
    assert detectable_difference(100, known) == pytest.approx(0.09, abs=0.01)
    assert detectable_difference(5, known) is None
    # Every document may change, as where a pilot of two or three saw no change: still none differs by more than 1.
    every = variation(np.ones(2), np.ones(2))
    assert (every.discordance, detectable_difference(2, every)) == (1, None)
    assert detectable_difference(6, PairedVariation.of_share(1.0, unit=100)) == pytest.approx(
        100 * (2 * 0.8 ** (1 / 6) - 1), rel=1e-4
    )
    n = documents_needed(2.0, PairedVariation.of_spread(9.0))
    # The paired t test's power by the non-central t distribution, written out.
    limit, shift = stats.t.isf(0.025, n - 1), 2 / 9 * np.sqrt(n)
    assert stats.nct.sf(limit, n - 1, shift) + stats.nct.cdf(-limit, n - 1, shift) == pytest.approx(0.8, abs=0.003)
    assert documents_needed(1e-6, known) is None


@pytest.mark.parametrize("known", [PairedVariation.of_share(0.15), PairedVariation.of_spread(0.3)])
def test_the_questions_are_inverse(known):
    n = documents_needed(0.07, known)
    assert power_of(n, 0.07, known) >= 0.8
    assert power_of(n - 1, 0.07, known) < 0.8
    assert detectable_difference(n, known) <= 0.07


def test_variation_of_a_pilot():
    one = np.array([0.0, 100.0, 100.0, 0.0, 100.0] * 8)
    two = one.copy()
    two[:6] = 100 - two[:6]
    found = variation(one, two)
    assert (found.discordance, found.unit, found.documents) == (6 / 40, 100.0, 40)
    assert variation(one, one).discordance == 3 / 40
    rouge = np.linspace(0, 1, 40)
    assert variation(rouge, rouge**2).spread == pytest.approx(np.std(rouge**2 - rouge, ddof=1), rel=0.15)
    assert variation(rouge, rouge).spread > 0


def test_few_changes_promise_nothing_that_the_test_cannot_give():
    """ROUGE with 2 of 50 changed has a smallest p of .5; five clusters of 20 have one of .0625."""
    one = np.linspace(0.2, 0.9, 50)
    two = one.copy()
    two[:2] += 0.3
    found = variation(one, two)
    assert (found.changed, found.discordance) == (2, 3 / 50)
    shown = detectable_difference(50, found)
    # So large a difference needs more documents to change: eight of fifty, for six to be seen in 80 % of samples.
    assert shown is None or shown > 0.03
    for n, difference in ((50, 0.02), (50, 0.05), (200, 0.02), (1000, 0.01)):
        rng = np.random.default_rng(n)
        share = max(found.discordance, difference / found.size)
        changes = np.where(rng.random((n, 400)) < share, rng.normal(difference / share, found.size, (n, 400)), 0.0)
        rejected = np.mean(np.array(mean_p_values(changes, draws=499)) < 0.05)
        assert rejected == pytest.approx(power_of(n, difference, found), abs=0.1)
    clusters = np.repeat(np.arange(5), 20)
    rng = np.random.default_rng(1)
    values = rng.normal(size=100) + rng.normal(size=5)[clusters]
    assert detectable_difference(100, variation(np.zeros(100), values, clusters)) is None


def test_what_nobody_saw_is_not_said_to_be_seen():
    same = np.array([0.0, 1.0] * 6)
    said = sentence(12, variation(same, same), 0.1)
    assert "0 of 12 documents changed, so up to 25 % may" in said


def test_wrong_numbers_are_refused():
    with pytest.raises(ArgumentError, match="at least two"):
        variation(np.zeros(1), np.zeros(1))
    with pytest.raises(ArgumentError, match="above 0 and at most 1, got 1.5"):
        PairedVariation.of_share(1.5)
    with pytest.raises(ArgumentError, match="must be above 0, got 0"):
        PairedVariation.of_spread(0.0)
    with pytest.raises(ArgumentError, match="must not be 0"):
        documents_needed(0.0, PairedVariation.of_share(0.1))
    with pytest.raises(ArgumentError, match="cannot differ by more than 1, got 5"):
        documents_needed(5.0, PairedVariation.of_share(0.1))


def test_sentence_and_duration():
    assert duration(100, 31, 50.0) == 62.0
    said = sentence(100, PairedVariation.of_share(0.1), 0.02)
    assert "Minimum detectable difference with 100 documents: 0.088 (80 % power, alpha = 0.05; " in said
    assert "10 % of the documents change" in said
    assert "To detect 0.02, use about 2,043." in said
    assert "none, too few documents" in sentence(4, PairedVariation.of_share(0.1), 0.02)
