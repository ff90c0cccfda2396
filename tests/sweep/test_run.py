"""The exhaustive sweep from documents to the chosen boundary, with a runner that is a rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.events import Answered, Broadcast, SweepStarted
from lm_eval_lora_drop.record.journal import Journal
from lm_eval_lora_drop.show.listeners.interim import InterimScores
from lm_eval_lora_drop.sweep.backend import Pass, Work
from lm_eval_lora_drop.sweep.candidates import boundaries
from lm_eval_lora_drop.sweep.metric import resolve_metric
from lm_eval_lora_drop.sweep.run import SweepSettings, run_sweep
from lm_eval_lora_drop.sweep.score import Scorer
from testing.doubles import L, One, RuleRunner, Threads, exact_match_rule, make_documents, questions, sweep
from testing.records import k_of, rows_by_k
from testing.toy import make_task

ACCURACY = {0: 0.0, 1: 0.1, 2: 0.3, 3: 0.5, 4: 0.9, 5: 0.7, 6: 0.6}
SPLITS = questions(validation=40, test=40)


@pytest.fixture(scope="module")
def task() -> Any:
    return make_task(splits=SPLITS)


class Collecting:
    """A listener that keeps the pairs it was told of, and how the sweep stood when they were all there."""

    def __init__(self) -> None:
        self.standing: InterimScores | None = None

    def hear(self, event: Any) -> None:
        if isinstance(event, SweepStarted):
            self.standing = InterimScores(event)
        elif isinstance(event, Answered) and self.standing is not None:
            self.standing.add(event.pairs)


def test_listeners_hear_of_answers_that_the_check_has_got(task: Any, tmp_path: Path) -> None:
    """Of the best candidate the check has answered two documents: still it leads, and no pair is missing."""
    runner, listener, documents = RuleRunner(exact_match_rule(ACCURACY)), Collecting(), make_documents(task)
    variants = boundaries(range(L + 1), L)
    best = next(variant for variant in variants.variants if variant.boundary == 4)
    checked = next(iter(runner([Work(document, (best,)) for document in documents[:2]])))
    run_sweep(
        documents,
        lambda: Pass(runner, "rule", answers=checked),
        Scorer(task, resolve_metric(task, None)),
        SweepSettings(variants),
        Journal(tmp_path, "sha256:" + "ab" * 32, "toy", rank=0, settings={"adapter": "a"}),
        peers=One(),
        listeners=Broadcast([listener]),
    )
    assert listener.standing is not None
    assert listener.standing.pairs == (L + 1) * len(documents)
    leader = listener.standing.leader()
    assert leader is not None
    assert leader[0] == best


def test_scores_every_boundary_on_every_document_and_takes_the_best(task: Any, tmp_path: Path) -> None:
    runner = RuleRunner(exact_match_rule(ACCURACY))
    result = sweep(task, tmp_path, runner)
    assert len(runner.asked) == len(set(runner.asked)) == (L + 1) * 40
    assert k_of(result.chosen, L) == 4
    scores = {k: row.score for k, row in rows_by_k(result, L).items()}
    assert scores[0] == 0.0
    assert scores[4] > scores[5] > scores[6] > scores[3]
    assert all(row.documents == 40 and row.eliminated_after is None for row in result.candidates)
    # The closed form of the standard error of a share, with Bessel's correction.
    share = scores[4]
    assert rows_by_k(result, L)[4].stderr == pytest.approx((share * (1 - share) / 39) ** 0.5)


def test_the_record_holds_every_score_and_item(task: Any, tmp_path: Path) -> None:
    result = sweep(task, tmp_path, RuleRunner(exact_match_rule(ACCURACY)))
    assert [row.variant for row in result.candidates] == ["0-5", "0-4", "0-3", "0-2", "0-1", "0", "none"]
    assert result.chosen == result.best == "0-3"
    assert (result.candidate_set, result.ordered, result.aggregation) == ("boundary", True, "mean")
    four = rows_by_k(result, L)[4]
    assert sum(four.items) / 40 == four.score


def test_ties_go_to_the_larger_boundary(task: Any, tmp_path: Path) -> None:
    tied = {**ACCURACY, 3: 0.9}
    assert sweep(task, tmp_path, RuleRunner(exact_match_rule(tied))).chosen == "0-3"


def test_a_killed_sweep_goes_on_and_gives_the_same_table(task: Any, tmp_path: Path) -> None:
    undisturbed = sweep(task, tmp_path / "a", RuleRunner(exact_match_rule(ACCURACY)))
    killed = RuleRunner(exact_match_rule(ACCURACY), fails_after=100)
    with pytest.raises(RuntimeError, match="switched off"):
        sweep(task, tmp_path / "b", killed)
    again = RuleRunner(exact_match_rule(ACCURACY))
    resumed = sweep(task, tmp_path / "b", again)
    # 100 answers stop in the middle of a batch of 2 documents x 7 boundaries: 98 are on the disk.
    assert len(again.asked) == (L + 1) * 40 - 98
    assert resumed == undisturbed
    nothing_left = RuleRunner(exact_match_rule(ACCURACY))
    assert sweep(task, tmp_path / "b", nothing_left) == undisturbed
    assert nothing_left.asked == []


def test_a_narrower_sweep_is_served_from_the_journal_of_a_wider_one(task: Any, tmp_path: Path) -> None:
    sweep(task, tmp_path, RuleRunner(exact_match_rule(ACCURACY)))
    runner = RuleRunner(exact_match_rule(ACCURACY))
    result = sweep(task, tmp_path, runner, ks=(2, 4), documents=make_documents(task)[:10])
    assert runner.asked == []
    assert [row.documents for row in result.candidates] == [10, 10]
    assert result.gain_over_full is None


@pytest.mark.parametrize("world_size", [2, 3])
def test_every_process_ends_with_the_result_of_one_and_does_its_share(
    task: Any, tmp_path: Path, world_size: int
) -> None:
    alone = sweep(task, tmp_path / "alone", RuleRunner(exact_match_rule(ACCURACY)))
    runners = [RuleRunner(exact_match_rule(ACCURACY)) for _ in range(world_size)]
    results = Threads(world_size).run(
        lambda member: sweep(task, tmp_path / "together", runners[member.rank], peers=member)
    )
    assert results == [alone] * world_size
    asked = [pair for runner in runners for pair in runner.asked]
    assert len(asked) == len(set(asked)) == (L + 1) * 40
    assert max(len(runner.asked) for runner in runners) <= (L + 1) * -(-40 // world_size)
    assert len(list((tmp_path / "together").glob("*.jsonl"))) == world_size
    # One process takes up what several have written.
    rest = RuleRunner(exact_match_rule(ACCURACY))
    assert sweep(task, tmp_path / "together", rest) == alone
    assert rest.asked == []


def test_machines_without_a_common_folder_share_their_journals(task: Any, tmp_path: Path) -> None:
    alone = sweep(task, tmp_path / "0", RuleRunner(exact_match_rule(ACCURACY)))
    runners = [RuleRunner(exact_match_rule(ACCURACY)) for _ in range(2)]
    results = Threads(2).run(
        lambda member: sweep(task, tmp_path / str(member.rank), runners[member.rank], peers=member)
    )
    assert results == [alone, alone]
    assert [runner.asked for runner in runners] == [[], []]


def test_a_rank_with_nothing_to_do_stays_in_step(task: Any, tmp_path: Path) -> None:
    runners = [RuleRunner(exact_match_rule(ACCURACY)) for _ in range(3)]
    group = Threads(3)
    one = make_documents(task)[:1]
    results = group.run(lambda member: sweep(task, tmp_path, runners[member.rank], peers=member, documents=one))
    assert results[0] == results[1] == results[2]
    assert [len(runner.asked) for runner in runners] == [L + 1, 0, 0]
    assert len(set(group.gathers)) == 1


def test_an_error_in_one_process_ends_all_of_them_with_a_message(task: Any, tmp_path: Path) -> None:
    runners = [
        RuleRunner(exact_match_rule(ACCURACY)),
        RuleRunner(exact_match_rule(ACCURACY), fails_after=20),
    ]
    mine, other = Threads(2).run(lambda member: sweep(task, tmp_path, runners[member.rank], peers=member))
    assert isinstance(other, RuntimeError)
    assert str(other) == "the machine was switched off"
    assert isinstance(mine, RuntimeError)
    assert "process 1 of 2 failed: RuntimeError: the machine was switched off" in str(mine)


def test_documents_without_a_value_are_left_out_and_counted(tmp_path: Path) -> None:
    def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
        number = int(doc["answer"].split()[1])
        if number == 0:
            return {}
        return {"right": float("nan") if number == 1 else float(results[0] == doc["answer"])}

    task = make_task(
        splits=SPLITS,
        process_results=process_results,
        metric_list=[{"metric": "right", "aggregation": "mean", "higher_is_better": True}],
    )
    result = sweep(task, tmp_path, RuleRunner(exact_match_rule(ACCURACY)))
    assert [(row.documents, row.unscored) for row in result.candidates] == [(38, 2)] * (L + 1)
    assert k_of(result.chosen, L) == 4
    assert "14 of 280 answers gave no value of right" in result.warnings[0]
    assert result.candidates[0].items[:2] == (None, None)


def test_no_value_at_all_is_an_error_that_names_the_argument(tmp_path: Path) -> None:
    task = make_task(
        splits=SPLITS,
        process_results=lambda doc, results: {"right": float("nan")},
        metric_list=[{"metric": "right", "aggregation": "mean", "higher_is_better": True}],
    )
    with pytest.raises(ArgumentError, match="sweep_metric .* none of it"):
        sweep(task, tmp_path, RuleRunner(exact_match_rule(ACCURACY)))


def test_lower_is_better_turns_the_choice_around(tmp_path: Path) -> None:
    task = make_task(
        splits=SPLITS, metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": False}]
    )
    result = sweep(task, tmp_path, RuleRunner(exact_match_rule(ACCURACY)))
    assert k_of(result.chosen, L) == 0
    assert result.gain_over_full is not None
    assert result.gain_over_full.difference > 0
