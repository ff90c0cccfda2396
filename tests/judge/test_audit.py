"""`lora-drop judge audit` against judges with one fault each: the test of that fault finds it, and no other does."""

import json
import re
import sqlite3

import pytest
import yaml

from lm_eval_lora_drop.commands.main import main
from testing.judge_servers import Say, score_json
from testing.judged_runs import write_judged

ONE = [f"quality {2 + i % 7}, text {i}" for i in range(24)]
TWO = [f"quality {2 + (i + 3) % 7}, other text {i}" for i in range(24)]
HIGHEST = re.compile(r"score 10|Score: 10|\"score\": 10")


def block(request, name):
    return re.search(f"<({name}-[0-9a-f]{{16}})>\n(.*)\n</\\1>", request.prompt, re.DOTALL)[2]


def quality(text):
    return int(re.search(r"quality (\d)", text)[1])


def honest(request, nth):
    if "<prediction-" in request.prompt:
        return Say(score_json(quality(block(request, "prediction"))))
    first, second = (quality(block(request, name)) for name in "AB")
    return Say(json.dumps({"better": "A" if first > second else "B" if second > first else "tie"}))


def faulty(fault):
    def judge(request, nth):
        if "<prediction-" not in request.prompt:
            return Say('{"better": "A"}') if fault == "order" else honest(request, nth)
        text = block(request, "prediction")
        score = quality(text)
        if fault == "length" and text.count("quality") == 2:
            score += 1
        if fault == "injection" and HIGHEST.search(text):
            score = 10
        if fault == "repeat" and nth == 2:  # noise of mean 0
            score += 1 if int(re.search(r"text (\d+)", text)[1]) % 2 else -1
        return Say(score_json(score))

    return judge


@pytest.fixture
def audit(tmp_path, capsys):
    def run(server, *arguments, runs=(ONE, TWO), code=0, judges=None, **settings):
        panel = tmp_path / "panel.yaml"
        judges = judges or [server.judge("openai")]
        panel.write_text(yaml.safe_dump({"judges": judges, "backoff": 0.01, **settings}))
        paths = [write_judged(tmp_path / f"run{i}", outputs, name=f"run{i}") for i, outputs in enumerate(runs)]
        file = tmp_path / "audit.json"
        command = ["judge", "audit", *map(str, paths), "--panel", str(panel), "--json", str(file), *arguments]
        assert main(command) == code
        out = capsys.readouterr().out
        return json.loads(file.read_text())["judges"] if file.exists() else None, out

    return run


def significant(found):
    """The tests that speak against a judge."""
    named = {name for name in ("length", "injection", "drift") if found.get(name) and found[name]["p_value"] < 0.05}
    named |= {"repeat"} if found["repeat"]["same"] < found["repeat"]["outputs"] else set()
    return named | ({"order"} if found["order"]["position_bias_rate"] > 0.5 else set())


@pytest.mark.parametrize("fault", ["", "length", "injection", "repeat", "order"])
def test_each_fault_is_found_by_its_own_test_alone(fault, serve, audit):
    found, out = audit(serve(faulty(fault)))
    assert significant(found["openai-judge"]) == ({fault} if fault else set())
    assert len(out.split("\n")) < 40
    assert out.index("calls, 0 in the cache") < out.index("Audit of openai-judge")


def test_three_providers_are_audited_side_by_side(serve, audit):
    def mixed(request, nth):
        return faulty({"openai": "length", "anthropic": "injection", "google": ""}[request.provider])(request, nth)

    server = serve(mixed)
    found, out = audit(server, judges=[server.judge(name) for name in ("openai", "anthropic", "google")])
    assert [significant(found[f"{n}-judge"]) for n in ("openai", "anthropic", "google")] == [
        {"length"},
        {"injection"},
        set(),
    ]
    assert len(out.split("\n")) < 50


def test_the_cost_is_that_of_the_calls_and_a_rerun_is_free(serve, audit):
    server = serve(honest)
    _, out = audit(server, "--number", "10", "--dry-run")
    assert server.requests == []
    told = int(re.search(r"(\d+) calls", out)[1])
    found, _ = audit(server, "--number", "10")
    assert found["openai-judge"]["length"]["outputs"] == 10
    # As they are, again, twice, injected; and ten pairs in both orders.
    assert told == len(server.requests) == 4 * 10 + 2 * 10
    audit(server, "--number", "10")
    assert len(server.requests) == told


def test_a_cap_stops_the_calls_and_what_is_missing_is_said(serve, audit):
    server = serve(honest)
    found, out = audit(server, "--max-spend", "0.03", "--number", "20", code=1)
    assert len(server.requests) < 100
    assert "without" in out
    assert "$0.03" in out
    assert found["openai-judge"]["injection"] is None or found["openai-judge"]["injection"]["outputs"] < 20


@pytest.mark.parametrize("samples", [1, 2])
def test_answers_of_an_earlier_day_are_the_anchors_of_drift(serve, audit, tmp_path, samples):
    server = serve(honest)
    found, out = audit(server, samples=samples)
    assert found["openai-judge"]["drift"] is None
    assert "repeat this command on another day" in out
    with sqlite3.connect(tmp_path / "judges.sqlite") as connection:
        connection.execute("UPDATE calls SET time = time - 5 * 86400")
        connection.execute("DELETE FROM calls WHERE id % 10 = 0")  # a tenth of them was never asked
    found, _ = audit(server, "--number", "12", samples=samples)
    assert significant(found["openai-judge"]) == set()
    assert 0 < found["openai-judge"]["drift"]["outputs"] < 12


def test_a_harsher_model_under_the_same_name_is_drift_and_no_noise(serve, audit, tmp_path):
    now = {"model": "judge-1-2026-01-01", "harsher": 0}

    def changing(request, nth):
        say = honest(request, nth)
        if "<prediction-" in request.prompt:
            say = Say(score_json(quality(block(request, "prediction")) - now["harsher"]))
        say.model = now["model"]
        return say

    server = serve(changing)
    panel = tmp_path / "panel.yaml"
    panel.write_text(yaml.safe_dump({"judges": [server.judge("openai")]}))
    run = write_judged(tmp_path / "run0", ONE, name="run0")
    assert main(["judge", "rescore", str(run), "--panel", str(panel)]) == 0
    with sqlite3.connect(tmp_path / "judges.sqlite") as connection:
        connection.execute("UPDATE calls SET time = time - 5 * 86400")
    now |= {"model": "judge-1-2026-06-01", "harsher": 2}
    found, out = audit(server)
    assert significant(found["openai-judge"]) == {"drift"}
    drift = found["openai-judge"]["drift"]
    assert drift["change"] == pytest.approx(-20)
    assert drift["p_value"] < 0.001
    assert (drift["served_then"], drift["served_today"]) == (["judge-1-2026-01-01"], ["judge-1-2026-06-01"])
    assert drift["since"] in out
    assert found["openai-judge"]["repeat"]["same"] == found["openai-judge"]["repeat"]["outputs"]


def test_identical_outputs_of_several_runs_must_have_one_score(serve, audit, tmp_path):
    runs = [ONE, [text if i % 2 else f"{text}!" for i, text in enumerate(ONE)]]
    server = serve(honest)
    audit(server, runs=runs)
    panel = str(tmp_path / "panel.yaml")
    for i in (0, 1):
        assert main(["judge", "rescore", str(tmp_path / f"run{i}"), "--panel", panel]) == 0
    asked = len(server.requests)
    paths = [str(tmp_path / f"run{i}") for i in (0, 1)]
    out = tmp_path / "again.json"
    assert main(["judge", "audit", *paths, "--panel", panel, "--json", str(out)]) == 0
    assert json.loads(out.read_text())["judges"]["openai-judge"]["identical"] == {"outputs": 12, "different": 0}
    assert len(server.requests) == asked
    samples = next((tmp_path / "run1").glob("samples_*.jsonl"))
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    for row in rows[:4]:
        row["gpt_score_openai-judge"] = [0.0]
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["judge", "audit", *paths, "--panel", panel, "--json", str(out)]) == 0
    assert json.loads(out.read_text())["judges"]["openai-judge"]["identical"] == {"outputs": 12, "different": 2}


def test_one_run_says_what_a_second_would_show(serve, audit):
    found, out = audit(serve(honest), runs=(ONE,))
    assert found["openai-judge"]["order"] is None
    assert "give two runs whose outputs differ" in out
    assert "give two or more judged runs" in out
