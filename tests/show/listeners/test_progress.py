"""The bar says how far a sweep is and who leads, once, and only where it should."""

from __future__ import annotations

import pytest

from lm_eval_lora_drop.record.events import Answered, RoundStarted, SweepEnded
from lm_eval_lora_drop.show.listeners import default_listeners, progress
from lm_eval_lora_drop.show.listeners.progress import ProgressBar
from testing.events import CANDIDATES, DOCUMENTS, Mean, pairs, started, whole_sweep

ALL = len(CANDIDATES) * DOCUMENTS


@pytest.fixture(autouse=True)
def _every_update_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_SCORES", -1.0)
    monkeypatch.setenv("TQDM_MININTERVAL", "0")


def last(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.rsplit("\r", 1)[-1]


def hear(bar: ProgressBar, *events: object) -> None:
    for event in events:
        bar.hear(event)  # type: ignore[arg-type]


def test_shows_pairs_and_the_leader(capsys: pytest.CaptureFixture[str]) -> None:
    hear(ProgressBar(), *whole_sweep())
    shown = last(capsys)
    assert f"{ALL}/{ALL}" in shown
    assert "best K = 7 (30.5)" in shown


def test_the_leader_of_a_metric_that_should_be_low_is_the_lowest(capsys: pytest.CaptureFixture[str]) -> None:
    hear(ProgressBar(), started(scores=Mean(higher_is_better=False)), Answered(pairs(CANDIDATES, [0])), SweepEnded())
    assert "best K = 0 (23.0)" in last(capsys)


def test_a_candidate_that_met_fewer_documents_does_not_lead(capsys: pytest.CaptureFixture[str]) -> None:
    best, others = CANDIDATES[3], CANDIDATES[:3]
    assert best.boundary == 7
    events = [started(), Answered(pairs([best, *others], [1])), Answered(pairs(others, [0])), SweepEnded()]
    hear(ProgressBar(), *events)
    assert "best K = 8 (29.5)" in last(capsys)


def test_starts_where_the_journal_ends(capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar()
    hear(bar, started(pairs(CANDIDATES, range(3))), RoundStarted(5 * len(CANDIDATES)))
    assert f"{3 * len(CANDIDATES)}/{ALL}" in last(capsys)
    hear(bar, Answered(pairs(CANDIDATES, range(3, DOCUMENTS))), SweepEnded())
    assert f"{ALL}/{ALL}" in last(capsys)


def test_a_race_ends_at_what_it_asked(capsys: pytest.CaptureFixture[str]) -> None:
    few = CANDIDATES[:2]
    rounds = [RoundStarted(11), Answered(pairs(CANDIDATES, [0])), RoundStarted(14), Answered(pairs(few, range(1, 8)))]
    hear(ProgressBar(), started(), *rounds, SweepEnded())
    assert "25/25" in last(capsys)


def test_an_error_closes_the_bar_and_the_next_sweep_opens_another(capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar()
    hear(bar, started(), SweepEnded(), SweepEnded(), Answered(pairs(CANDIDATES, [0])))
    assert f"0/{ALL}" in last(capsys)
    hear(bar, *whole_sweep())
    assert f"{ALL}/{ALL}" in last(capsys)


def test_of_several_processes_only_the_first_listens() -> None:
    assert default_listeners(1) == []
    assert [type(one).__name__ for one in default_listeners(0, "none")] == ["ProgressBar", "LogTable", "SweepFigure"]
