"""A rescore never replaces verdicts that were paid for by fewer ones."""

import json
import sqlite3

import pytest
import yaml

from lm_eval_lora_drop.commands.main import main
from testing.judge_servers import Say, score_json
from testing.judged_runs import write_judged

PROVIDERS = ("openai", "anthropic", "google")
N = 12


def verdicts(path):
    (samples,) = path.parent.glob("samples_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    return [row[f"gpt_score_{p}-judge"][0] for row in rows for p in PROVIDERS]


@pytest.fixture
def scored(tmp_path, serve, monkeypatch):
    """A run with 36 verdicts of three judges; `state` tells the server who answers from now on."""
    state = {"dead": set()}
    server = serve(
        lambda request, nth: Say(status=500) if request.provider in state["dead"] else Say(score_json(nth % 2 + 7))
    )
    path = write_judged(tmp_path / "run", [f"output {i}" for i in range(N)], name="system")
    panel = tmp_path / "panel.yaml"
    settings = {"backoff": 0.0, "attempts": 1}
    panel.write_text(yaml.safe_dump({"judges": [server.judge(p) for p in PROVIDERS], **settings}))
    assert main(["judge", "rescore", str(path), "--panel", str(panel)]) == 0
    assert len(verdicts(path)) == 36
    assert None not in verdicts(path)
    monkeypatch.setenv("LORA_DROP_JUDGE_CACHE", str(tmp_path / "another.sqlite"))
    return path, panel, server, state


def contents(path):
    return {file.name: file.read_bytes() for file in path.parent.iterdir()}


@pytest.mark.parametrize("cause", ["dead vendors", "one dead vendor", "offline", "cap", "full disk"])
def test_fewer_verdicts_are_not_written(cause, scored, capsys, monkeypatch, small_disk):
    path, panel, _, state = scored
    before = contents(path)
    arguments = ["judge", "rescore", str(path), "--panel", str(panel)]
    if cause == "dead vendors":
        state["dead"] = set(PROVIDERS)
    elif cause == "one dead vendor":
        state["dead"] = {"google"}
    elif cause == "offline":
        arguments.append("--offline")
    elif cause == "cap":
        arguments += ["--max-spend", "0.02"]
    if cause == "full disk":
        with small_disk(60_000):
            code = main(arguments)
    else:
        code = main(arguments)
    assert code == 1
    assert contents(path) == before
    said = capsys.readouterr().err
    assert "36 verdicts" in said
    assert "--force" in said


def test_with_force_the_old_details_and_scores_stay_beside(scored):
    path, panel, _, state = scored
    old, before = verdicts(path), json.loads(path.read_text())["configs"]["t"]["metadata"]["gpt_score"]
    state["dead"] = {"google"}
    assert main(["judge", "rescore", str(path), "--panel", str(panel), "--force"]) == 1
    details = json.loads(path.read_text())["configs"]["t"]["metadata"]["gpt_score"]
    (earlier,) = details["earlier"]
    assert earlier["judges"] == before["judges"]
    kept = earlier["percentages"]
    assert [kept[f"{p}-judge"][str(i)] for i in range(N) for p in PROVIDERS] == old
    # A second replacement keeps the first one's as well.
    state["dead"] = set(PROVIDERS)
    with sqlite3.connect(path.parent.parent / "another.sqlite") as connection:
        connection.execute("DELETE FROM calls")
    main(["judge", "rescore", str(path), "--panel", str(panel), "--force"])
    details = json.loads(path.read_text())["configs"]["t"]["metadata"]["gpt_score"]
    assert [entry["verdicts"] for entry in details["earlier"]] == [36, 24]


def test_another_panel_of_as_many_verdicts_keeps_those_of_the_first(scored, tmp_path):
    path, _, server, _ = scored
    panel = tmp_path / "other.yaml"
    judges = [server.judge("openai", name=f"{letter}-judge", model=f"judge-{letter}") for letter in "abc"]
    panel.write_text(yaml.safe_dump({"judges": judges}))
    assert main(["judge", "rescore", str(path), "--panel", str(panel)]) == 0
    details = json.loads(path.read_text())["configs"]["t"]["metadata"]["gpt_score"]
    assert set(details["judges"]) == {"a-judge", "b-judge", "c-judge"}
    assert set(details["earlier"][0]["percentages"]) == {f"{p}-judge" for p in PROVIDERS}


def test_one_judge_more_does_not_hide_that_another_has_fewer(scored, tmp_path, capsys):
    path, panel, server, state = scored
    data = yaml.safe_load(panel.read_text())
    data["judges"].append(server.judge("openai", name="fourth", model="judge-4"))
    panel.write_text(yaml.safe_dump(data))
    state["dead"] = {"google"}
    before = contents(path)
    assert main(["judge", "rescore", str(path), "--panel", str(panel)]) == 1
    assert contents(path) == before
    assert "google-judge: 12, now 0" in capsys.readouterr().err
