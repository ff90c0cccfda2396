"""The bar says how far a sweep is and who leads, once, and only where it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lm_eval_lora_drop.listeners import progress
from lm_eval_lora_drop.record.journal import Journal
from lm_eval_lora_drop.sweep.metric import resolve_metric
from lm_eval_lora_drop.sweep.run import SweepSettings, run_sweep
from lm_eval_lora_drop.sweep.score import Scorer
from tests.sweep.doubles import L, One, RuleRunner, Threads, exact_match_rule, make_documents
from tests.toy import make_task

RULE = exact_match_rule({0: 0.0, 1: 0.1, 2: 0.3, 3: 0.5, 4: 1.0, 5: 0.7, 6: 0.6})
DOCS = [{"question": f"{i}?", "answer": f"answer {i}"} for i in range(40)]


def sweep(folder: Path, *, peers: Any = None, shown: bool = True, **settings: Any) -> None:
    task = make_task(splits={"validation": DOCS, "test": DOCS[:1]})
    peers = peers or One()
    run_sweep(
        make_documents(task),
        RuleRunner(RULE),
        Scorer(task, resolve_metric(task, None)),
        SweepSettings(tuple(range(L + 1)), **settings),
        Journal(folder, "sha256:ab", "toy", rank=peers.rank, settings={}),
        num_layers=L,
        peers=peers,
        progress=shown,
    )


@pytest.fixture(autouse=True)
def _every_update_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_SCORES", -1.0)
    monkeypatch.setenv("TQDM_MININTERVAL", "0")


def test_shows_pairs_boundaries_at_work_and_the_leader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path)
    last = capsys.readouterr().err.rsplit("\r", 1)[-1]
    assert "280/280" in last
    assert "K=0-6, best K=4 (1)" in last


def test_starts_where_the_journal_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path)
    capsys.readouterr()
    sweep(tmp_path)
    assert "280/280" in capsys.readouterr().err


def test_a_race_ends_at_what_it_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path, strategy="racing")
    done, total = capsys.readouterr().err.rsplit("\r", 1)[-1].split("|")[2].split("[")[0].split("/")
    assert int(done) == int(total) < 280


def test_is_silent_when_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path, shown=False)
    assert capsys.readouterr().err == ""


def test_of_several_processes_the_first_shows_its_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Threads(2).run(lambda member: sweep(tmp_path / "first", peers=member, shown=member.rank == 0))
    assert "140/140" in capsys.readouterr().err
    Threads(2).run(lambda member: sweep(tmp_path / "other", peers=member, shown=member.rank == 1))
    assert capsys.readouterr().err == ""
