"""Paired randomisation against enumeration, scipy and statsmodels, where few documents differ and where scores tie."""

import itertools

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF, TER
from statsmodels.stats.contingency_tables import mcnemar

from lm_eval_lora_drop.statistics import randomisation
from lm_eval_lora_drop.statistics.clusters import cluster_codes
from lm_eval_lora_drop.statistics.corpus import corpus_test
from lm_eval_lora_drop.statistics.significance import mean_p_values, mean_test


def test_mcnemar_equals_statsmodels():
    """statsmodels' exact McNemar test on every table of up to 12 changes."""
    for gained in range(13):
        for lost in range(13 - gained):
            want = mcnemar([[5, lost], [gained, 7]], exact=True).pvalue
            assert randomisation.mcnemar(gained, lost) == pytest.approx(min(1.0, want), abs=1e-12)
    assert randomisation.mcnemar(9, 1) == pytest.approx(22 / 1024)


def by_enumeration(differences):
    """Every choice of signs, in plain Python, ties counted."""
    observed = abs(sum(differences))
    totals = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(total >= observed - 1e-9 for total in totals) / len(totals)


@pytest.mark.parametrize("seed", range(8))
def test_small_cases_equal_enumeration(seed):
    """Ties, equal sizes, both signs, zeros; every exchange is tried, so there is no simulation error to allow for."""
    rng = np.random.default_rng(seed)
    differences = rng.choice([0.0, 0.1, 0.2, -0.3, 0.5, 1 / 3, -0.1], 9)
    (test,) = randomisation.mean_tests(differences[:, None])
    assert test.exact
    assert test.p_value == pytest.approx(by_enumeration(differences.tolist()), abs=1e-12)


def test_draws_estimate_the_exact_p():
    """The random branch (fewer draws than exchanges) against enumeration of 2**14."""
    differences = np.random.default_rng(1).normal(0.4, 1, 14).round(2)
    exact = by_enumeration(differences.tolist())
    (test,) = randomisation.mean_tests(differences[:, None], draws=9_999)
    assert not test.exact
    assert test.p_value == pytest.approx(exact, abs=4 * np.sqrt(exact / 9_999))


def test_columns_do_not_see_one_another():
    """A system has the same p alone and among 300 others: sparse, tied, 0/1 and dense columns."""
    rng = np.random.default_rng(3)
    columns = [rng.normal(0.1, 1, 40), (rng.random(40) < 0.1) * rng.random(40), rng.integers(-1, 2, 40).astype(float)]
    others = rng.normal(0, 1, (40, 300))
    together = mean_p_values(np.column_stack([*columns, others]), draws=499)
    for index, column in enumerate(columns):
        assert together[index] == mean_test(np.zeros(40), column, draws=499).p_value


def test_rounding_is_no_difference():
    """0.1 + 0.2 is not 0.3 in floating point; such documents are equal, and sums that tie are ties."""
    one, two = np.array([0.3, 0.5, 0.7]), np.array([0.1 + 0.2, 0.5, 0.7])
    assert mean_test(one * 1.0, np.where(two == 0.5, 1.0, two)).p_value == 1.0
    assert randomisation.mean_tests(np.array([[0.1], [0.2], [-0.3]] * 6), draws=999)[0].p_value == 1.0


WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "at", "small", "birds", "in", "old", "trees", "by", "us"]


def sentences(count, rng):
    return [" ".join(rng.choice(WORDS, 8)) for _ in range(count)]


def corpora(documents, differing, seed):
    """Two outputs and the references; `differing` documents differ."""
    rng = np.random.default_rng(seed)
    references = sentences(documents, rng)
    one = [" ".join([*text.split()[:-1], "x"]) for text in references]
    two = list(one)
    for row in rng.choice(documents, differing, replace=False):
        two[row] = " ".join(["y", *one[row].split()[1:]])
    return one, two, references


@pytest.mark.parametrize("metric", [BLEU(tokenize="13a"), CHRF(), TER()], ids=["bleu", "chrf", "ter"])
@pytest.mark.parametrize("differing", range(7))
def test_corpus_p_equals_enumeration(metric, differing):
    """Every exchange scored by sacrebleu's public corpus_score; ties within 1e-9 of a point count."""
    one, two, references = corpora(30, differing, differing)
    rows = [i for i in range(30) if one[i] != two[i]]

    def difference(exchanged):
        left, right = list(one), list(two)
        for row in exchanged:
            left[row], right[row] = right[row], left[row]
        scores = [metric.corpus_score(side, [references]).score for side in (right, left)]
        return abs(scores[0] - scores[1])

    subsets = itertools.chain.from_iterable(itertools.combinations(rows, size) for size in range(len(rows) + 1))
    everything = [difference(subset) for subset in subsets]
    want = sum(value >= everything[0] - 1e-7 for value in everything) / len(everything)
    found = corpus_test(metric, one, two, references)
    assert found.p_value == pytest.approx(want, abs=1e-12)
    assert ", exact" in found.method


def test_corpus_p_where_all_lose():
    """k documents lose and none gains: 2 / 2**k, for k = 1 ... 8."""
    rng = np.random.default_rng(0)
    references = sentences(50, rng)
    for k in range(1, 9):
        two = [" ".join(["x"] * 8) if row < k else text for row, text in enumerate(references)]
        assert corpus_test(BLEU(), references, two, references).p_value == pytest.approx(2.0 ** (1 - k))


@pytest.mark.parametrize("differing", [2, 4, 6, 10])
def test_corpus_level_under_exchangeability(differing):
    """`differing` of 50 documents differ and which system said what is a coin toss: rejected in at most 5 %."""
    metric = BLEU()
    rng = np.random.default_rng(differing)
    one, two, references = corpora(50, differing, 7)
    statistics = [np.array(metric._extract_corpus_statistics(side, [references]), dtype=float) for side in (one, two)]
    samples = 100
    rejected = 0
    for _ in range(samples):
        toss = (rng.random(50) < 0.5)[:, None]
        found = randomisation.totals_test(
            lambda totals: np.array([metric._compute_score_from_stats(row).score for row in totals.tolist()]),
            np.where(toss, *statistics),
            np.where(toss, *statistics[::-1]),
        )
        assert found.exact
        rejected += found.p_value < 0.05
    assert rejected / samples <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / samples)


def test_clusters_are_exchanged_together():
    """Ten documents in three clusters have 2**3 exchanges; the oracle enumerates them on the documents."""
    keys = list("aaaabbbbcc")
    differences = np.array([0.5, 0.2, 0.1, 0.4, 0.3, 0.1, -0.1, 0.2, 0.6, 0.1])
    totals = [
        abs(sum(d * dict(zip("abc", signs, strict=True))[k] for d, k in zip(differences, keys, strict=True)))
        for signs in itertools.product((1, -1), repeat=3)
    ]
    want = sum(t >= totals[0] - 1e-9 for t in totals) / 8
    found = mean_test(np.zeros(10), differences, clusters=cluster_codes(keys))
    assert found.p_value == pytest.approx(want)
    assert want == 0.25
    assert "of clusters" in found.method
    assert mean_test(np.zeros(10), differences).p_value < 0.05
