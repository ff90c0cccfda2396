"""Racing spends fewer answers and rarely gives up what an exhaustive sweep would have chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api.metrics import mean

from lm_eval_lora_drop.metrics.corpus import BLEU_ZH
from lm_eval_lora_drop.record.journal import Journal
from lm_eval_lora_drop.record.sweep import SweepResult
from lm_eval_lora_drop.statistics.aggregation import Aggregation
from lm_eval_lora_drop.sweep.elimination import critical_value, eliminate
from lm_eval_lora_drop.sweep.metric import resolve_metric
from lm_eval_lora_drop.sweep.racing import Race, RacingSettings, schedule
from lm_eval_lora_drop.sweep.run import SweepSettings, run_sweep
from lm_eval_lora_drop.sweep.score import Scorer
from lm_eval_lora_drop.sweep.table import Table
from tests.sweep.doubles import L, One, RuleRunner, Threads, exact_match_rule, make_documents, uniform
from tests.toy import make_task

TABLES = 20
ACCURACY = {0: 0.0, 1: 0.05, 2: 0.1, 3: 0.3, 4: 0.9, 5: 0.88, 6: 0.7}
SPLITS = {
    split: [{"question": f"{split} {i}?", "answer": f"answer {i}"} for i in range(size)]
    for split, size in (("validation", 100), ("test", 2))
}


@pytest.fixture(scope="module")
def task() -> Any:
    return make_task(splits=SPLITS)


def sweep(task: Any, folder: Path, runner: RuleRunner, *, peers: Any = None, **settings: Any) -> SweepResult:
    peers = peers or One()
    return run_sweep(
        make_documents(task),
        runner,
        Scorer(task, resolve_metric(task, None)),
        SweepSettings(**{"boundaries": tuple(range(L + 1)), "strategy": "racing", **settings}),
        Journal(folder, "sha256:" + "ab" * 32, "toy", rank=peers.rank, settings={}),
        num_layers=L,
        peers=peers,
        progress=False,
    )


def filled(values: np.ndarray) -> Table:
    """A table of recorded scores, `(boundaries 0..L, documents)`."""
    table = Table(range(len(values) - 1, -1, -1), values.shape[1])
    table.set((k, position, float(item)) for k, row in enumerate(values) for position, item in enumerate(row))
    return table


def run_race(values: np.ndarray, seed: int, select: str = "best", **settings: Any) -> Race:
    race = Race(
        filled(values),
        Aggregation(mean),
        sign=1,
        num_layers=len(values) - 1,
        seed=seed,
        select=select,
        settings=RacingSettings(**settings),
    )
    for _ in race.rounds():
        pass
    return race


def winner(values: np.ndarray, among: Any = None) -> int:
    """The best mean, the larger K where they tie."""
    return max(among if among is not None else range(len(values)), key=lambda k: (values[k].mean(), k))


def curves(shape: str, documents: int, rng: np.random.Generator) -> np.ndarray:
    """Recorded scores like real ones: what a document scores changes little from one boundary to the next."""
    boundaries = 12
    steps = rng.normal(size=(boundaries, documents))
    latent = np.empty_like(steps)
    latent[0] = steps[0]
    for k in range(1, boundaries):
        latent[k] = 0.95 * latent[k - 1] + (1 - 0.95**2) ** 0.5 * steps[k]
    if shape == "real numbers":
        return 30 + 10 * latent + np.linspace(-20, 0, boundaries)[:, None] ** 3 / 400
    level = {
        "all equal": np.full(boundaries, 0.5),
        "rising": np.linspace(0.0, 0.7, boundaries),
        "peak": np.concatenate([np.linspace(0.0, 0.7, boundaries - 3), [0.65, 0.6, 0.55]]),
    }[shape]
    ranks = latent.argsort(axis=1).argsort(axis=1) / documents
    return (ranks < level[:, None]).astype(float)


def test_chooses_what_an_exhaustive_sweep_chooses_with_fewer_answers(task: Any, tmp_path: Path) -> None:
    full = sweep(task, tmp_path / "a", RuleRunner(exact_match_rule(ACCURACY)), strategy="exhaustive")
    runner = RuleRunner(exact_match_rule(ACCURACY))
    raced = sweep(task, tmp_path / "b", runner, racing=RacingSettings(tolerance=0.0))
    assert raced.boundary == full.boundary == 4
    assert len(runner.asked) == len(set(runner.asked)) < 0.6 * (L + 1) * 100
    assert raced.gain == full.gain


def test_retired_boundaries_stay_in_the_table_with_the_documents_they_met(task: Any, tmp_path: Path) -> None:
    result = sweep(task, tmp_path, RuleRunner(exact_match_rule(ACCURACY)))
    rows = {row.boundary: row for row in result.rows}
    assert rows[0].retired_after is not None
    assert rows[0].documents == rows[0].retired_after < 30
    assert rows[L].retired_after is None
    assert rows[L].documents == rows[result.boundary].documents == 100
    written = result.to_json()
    assert sum(item is not None for item in written["items"]["0"]) == rows[0].retired_after
    assert {"boundary": 0, "by": written["racing"]["retired"][0]["by"], "reason": "beaten"} in written["racing"][
        "retired"
    ]
    assert f"retired after {rows[0].retired_after}" in result.table()


def test_a_race_depends_on_its_seed_alone(task: Any, tmp_path: Path) -> None:
    """Not on the order of answers, the processes, the batches, or on what a journal knows beyond the race."""
    first = RuleRunner(exact_match_rule(ACCURACY))
    once = sweep(task, tmp_path / "once", first)
    other = RuleRunner(exact_match_rule(ACCURACY), batch=7)
    assert sweep(task, tmp_path / "again", other) == once
    runners = [RuleRunner(exact_match_rule(ACCURACY)) for _ in range(2)]
    together = Threads(2).run(lambda member: sweep(task, tmp_path / "two", runners[member.rank], peers=member))
    assert together == [once, once]
    assert sorted(runners[0].asked + runners[1].asked) == sorted(first.asked)
    sweep(task, tmp_path / "wide", RuleRunner(exact_match_rule(ACCURACY)), strategy="exhaustive")
    nothing = RuleRunner(exact_match_rule(ACCURACY))
    assert sweep(task, tmp_path / "wide", nothing) == once
    assert nothing.asked == []
    reshuffled = RuleRunner(exact_match_rule(ACCURACY))
    sweep(task, tmp_path / "seed", reshuffled, seed=1)
    assert sorted(reshuffled.asked) != sorted(first.asked)


def test_a_killed_race_goes_on_and_gives_the_same_table(task: Any, tmp_path: Path) -> None:
    undisturbed_runner = RuleRunner(exact_match_rule(ACCURACY))
    undisturbed = sweep(task, tmp_path / "a", undisturbed_runner)
    with pytest.raises(RuntimeError, match="switched off"):
        sweep(task, tmp_path / "b", RuleRunner(exact_match_rule(ACCURACY), fails_after=150))
    rest = RuleRunner(exact_match_rule(ACCURACY))
    assert sweep(task, tmp_path / "b", rest) == undisturbed
    assert len(rest.asked) < len(undisturbed_runner.asked) - 130


def test_one_se_keeps_boundaries_within_one_standard_error_in_the_race(task: Any, tmp_path: Path) -> None:
    near = {**ACCURACY, 2: 0.89}
    full = sweep(task, tmp_path / "a", RuleRunner(exact_match_rule(near)), select="one_se", strategy="exhaustive")
    raced = sweep(task, tmp_path / "b", RuleRunner(exact_match_rule(near)), select="one_se")
    assert full.boundary == raced.boundary == 2
    assert next(row.retired_after for row in raced.rows if row.boundary == 2) is None
    assert next(row.retired_after for row in raced.rows if row.boundary == 0) is not None


def test_lower_is_better_races_downwards(tmp_path: Path) -> None:
    task = make_task(
        splits=SPLITS, metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": False}]
    )
    result = sweep(task, tmp_path, RuleRunner(exact_match_rule({**ACCURACY, 0: 0.2, 1: 0.0})))
    assert result.boundary == 1
    assert next(row.retired_after for row in result.rows if row.boundary == 4) is not None


@pytest.mark.parametrize("shape", ["all equal", "rising", "peak", "real numbers"])
def test_the_exhaustive_winner_is_given_up_within_the_error_rate(shape: str) -> None:
    """Without tolerance: over 200 races on 20 recorded tables the winner survives in at least 95 of 100."""
    lost = 0
    for table_seed in range(TABLES):
        values = curves(shape, 60, np.random.default_rng(table_seed))
        best = winner(values)
        lost += sum(best in run_race(values, seed, tolerance=0.0).retired for seed in range(10))
    assert lost <= 0.05 * TABLES * 10


@pytest.mark.parametrize("shape", ["all equal", "rising", "peak", "real numbers"])
def test_the_choice_is_within_one_standard_error_of_the_winner(shape: str) -> None:
    """With the tolerance: in at least 95 of 100 races; and it spends less than without."""
    missed = 0
    spent = {0.0: 0, 1.0: 0}
    for table_seed in range(TABLES):
        values = curves(shape, 60, np.random.default_rng(table_seed))
        best = winner(values)
        allowed = values[best].mean() - values[best].std(ddof=1) / 60**0.5
        for seed in range(10):
            race = run_race(values, seed)
            chosen = winner(values, [k for k in range(len(values)) if k not in race.retired])
            missed += values[chosen].mean() < allowed
            spent[1.0] += sum(len(race.positions(k)) for k in range(len(values)))
            strict = run_race(values, seed, tolerance=0.0)
            spent[0.0] += sum(len(strict.positions(k)) for k in range(len(values)))
    assert missed <= 0.05 * TABLES * 10
    assert spent[1.0] < spent[0.0] < TABLES * 10 * values.size


def test_a_boundary_others_were_given_up_for_is_carried_to_the_end() -> None:
    """Else a chain of small losses could add up to more than the tolerance."""
    for table_seed in range(20):
        race = run_race(curves("all equal", 60, np.random.default_rng(table_seed)), seed=0)
        leaned_on = {entry["by"] for entry in race.to_json()["retired"] if entry["reason"] == "no_better"}
        assert leaned_on
        assert not leaned_on & set(race.retired)


def test_full_is_carried_to_the_end_even_when_it_is_hopeless() -> None:
    values = curves("rising", 60, np.random.default_rng(0))
    race = run_race(values[::-1], seed=0)
    assert len(values) - 1 not in race.retired
    assert len(race.positions(len(values) - 1)) == 60


def test_a_few_identical_documents_do_not_pass_for_equality() -> None:
    """Two boundaries that agree on the first 8 documents may still differ: neither is given up for the other."""
    values = np.array([[0.0] * 8, [1.0, 0, 1, 0, 1, 0, 1, 0], [1.0, 0, 1, 0, 1, 0, 1, 0]])
    assert eliminate(values, [0, 1, 2], [], total=100, critical=3.0, margin=-0.05) == []


def test_documents_without_a_value_take_no_part() -> None:
    rng = np.random.default_rng(0)
    values = np.vstack([rng.random(60) < share for share in (0.05, 0.9, 0.95)]).astype(float)
    with_gaps = np.hstack([values, np.full((3, 5), np.nan)])
    verdicts = eliminate(with_gaps, [0, 1, 2], [], total=200, critical=3.0, margin=0.0)
    assert [(verdict.boundary, verdict.reason) for verdict in verdicts] == [(0, "beaten")]
    empty = np.vstack([values[1], np.full(60, np.nan)])
    assert eliminate(empty, [0, 1], [], total=200, critical=3.0, margin=-0.1) == []


def test_the_critical_value_is_bonferroni() -> None:
    """0.05 over 30 rivals and 6 rounds: the normal quantile of 0.05 / 180, from a table of the normal distribution."""
    assert critical_value(0.05, 30, 6) == pytest.approx(3.4528, abs=1e-3)


@pytest.mark.parametrize("documents", [1, 2, 7, 8, 9, 10, 100, 1000])
def test_rounds_grow_and_end_with_all_documents(documents: int) -> None:
    rounds = schedule(documents, RacingSettings())
    assert rounds == sorted(set(rounds))
    assert rounds[-1] == documents
    assert documents < 8 or rounds[0] in (8, documents)


def test_corpus_metrics_race_on_what_each_document_adds() -> None:
    """BLEU: pseudo-values whose mean is near the score, with the spread that a bootstrap finds."""
    rng = np.random.default_rng(5)
    words = list("天地玄黄宇宙洪荒日月盈昃辰宿列张")
    references = ["".join(rng.choice(words, size=12)) for _ in range(80)]

    def garble(text: str, share: float) -> str:
        return "".join(word if rng.random() > share else "某" for word in text)

    items = {
        k: [BLEU_ZH.statistics(garble(r, share), r) for r in references] for k, share in enumerate((0.9, 0.3, 0.2))
    }
    aggregation = Aggregation(BLEU_ZH)
    values = aggregation.per_document(items[2])
    assert values.mean() == pytest.approx(aggregation.score(items[2]), abs=0.5)
    counts = rng.multinomial(80, [1 / 80] * 80, size=400)
    assert values.std(ddof=1) / 80**0.5 == pytest.approx(aggregation.resample(items[2], counts).std(ddof=1), rel=0.15)

    table = Table([2, 1, 0], 80)
    table.set((k, position, item) for k, row in items.items() for position, item in enumerate(row))
    race = Race(table, aggregation, sign=1, num_layers=2, seed=0)
    for _ in race.rounds():
        pass
    assert race.retired[0] < 40


def test_pseudo_values_of_a_mean_are_its_items_and_gaps_stay_gaps() -> None:
    any_mean = Aggregation(lambda items: sum(items) / len(items))
    items = [0.25, None, 1.0, uniform("x")]
    expected = np.array([np.nan if item is None else item for item in items])
    np.testing.assert_allclose(Aggregation(mean).per_document(items), expected)
    np.testing.assert_allclose(any_mean.per_document(items), expected)
