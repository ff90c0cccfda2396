"""The bar says how far a sweep is and who leads, once, and only where it should."""

from __future__ import annotations

import logging
import sys

import pytest

from lm_eval_lora_drop.record.events import Answered, RoundStarted, SweepEnded
from lm_eval_lora_drop.show.listeners import default_listeners, progress
from lm_eval_lora_drop.show.listeners.progress import ProgressBar
from testing.events import CANDIDATES, DOCUMENTS, Mean, pairs, started, whole_sweep

ALL = len(CANDIDATES) * DOCUMENTS


@pytest.fixture(autouse=True)
def _every_update_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_SCORES", -1.0)
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
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
    assert "best K = 7 (30.5, n = 8)" in shown


def test_the_leader_of_a_metric_that_should_be_low_is_the_lowest(capsys: pytest.CaptureFixture[str]) -> None:
    hear(ProgressBar(), started(scores=Mean(higher_is_better=False)), Answered(pairs(CANDIDATES, [0])), SweepEnded())
    assert "best K = 0 (23.0, n = 1)" in last(capsys)


def test_the_leader_is_that_of_the_documents_that_all_have_answered(capsys: pytest.CaptureFixture[str]) -> None:
    """A batch ends short answers first: the base model has more documents than the best candidate, yet no lead."""
    others, hasty = CANDIDATES[:-1], CANDIDATES[-1:]
    events = [
        Answered(pairs(hasty, range(1, 8))),
        Answered(pairs(others, [0])),
        Answered(pairs(hasty, [0])),
    ]
    bar = ProgressBar()
    hear(bar, started(), RoundStarted(ALL, CANDIDATES), *events[:2])
    assert "best" not in capsys.readouterr().err
    hear(bar, events[2], SweepEnded())
    assert "best K = 7 (30.0, n = 1)" in last(capsys)


def test_what_a_race_has_eliminated_does_not_hold_up_its_leader(capsys: pytest.CaptureFixture[str]) -> None:
    left = CANDIDATES[4:]
    first = [RoundStarted(11, CANDIDATES), Answered(pairs(CANDIDATES, [0]))]
    rounds = [*first, RoundStarted(7, left), Answered(pairs(left, [1]))]
    hear(ProgressBar(), started(), *rounds, RoundStarted(7, left), Answered(pairs(left, [2])), SweepEnded())
    assert "best K = 6 (29.3, n = 3)" in last(capsys)


def test_a_log_line_stands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    logging.getLogger("lm_eval").addHandler(handler)
    bar = ProgressBar()
    try:
        hear(bar, started(), Answered(pairs(CANDIDATES, [0])))
        capsys.readouterr()
        handler.handle(logging.makeLogRecord({"msg": "verified"}))
        before, _, after = capsys.readouterr().err.partition("verified\n")
        assert before.startswith("\r")
        assert not before.strip()
        assert not after
    finally:
        hear(bar, SweepEnded())
        logging.getLogger("lm_eval").removeHandler(handler)
    assert not handler.filters


def test_without_a_terminal_every_state_is_a_log_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "on_terminal", lambda: False)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    caplog.set_level(logging.INFO)
    hear(ProgressBar(), *whole_sweep())
    assert capsys.readouterr().err == ""
    assert caplog.messages[0].startswith(f"sweep: 0 of {ALL} answers, 00:00 passed, ? left, first batch")
    assert caplog.messages[-1].startswith(f"sweep: {ALL} of {ALL} answers, ")
    assert caplog.messages[-1].endswith(" 00:00 left, best K = 7 (30.5, n = 8)")


def test_starts_where_the_journal_ends(capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar()
    hear(bar, started(pairs(CANDIDATES, range(3))), RoundStarted(5 * len(CANDIDATES), CANDIDATES))
    assert f"{3 * len(CANDIDATES)}/{ALL}" in last(capsys)
    hear(bar, Answered(pairs(CANDIDATES, range(3, DOCUMENTS))), SweepEnded())
    assert f"{ALL}/{ALL}" in last(capsys)


def test_a_race_ends_at_what_it_asked(capsys: pytest.CaptureFixture[str]) -> None:
    few = CANDIDATES[:2]
    first = [RoundStarted(11, CANDIDATES), Answered(pairs(CANDIDATES, [0]))]
    hear(ProgressBar(), started(), *first, RoundStarted(14, few), Answered(pairs(few, range(1, 8))), SweepEnded())
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
