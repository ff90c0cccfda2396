"""A panel of three providers through the lm_eval command, killed in the middle, run again, and rescored."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import yaml

from lm_eval_lora_drop.commands.main import main
from lm_eval_lora_drop.judge.task import read_items
from testing.forked import Forked
from testing.judge_servers import KEYS, Say, score_json
from testing.toy import evaluate_examples

ROOT = Path(__file__).resolve().parents[2]
PROVIDERS = ("openai", "anthropic", "google")


@pytest.fixture
def evaluate(tiny_base, tiny_adapter, shared_data, tmp_path):
    """Start `lm_eval` on 16 SAMSum dialogues; everything it says and writes is below tmp_path."""

    def start(output, *extra, task="lora_drop_samsum", **environment):
        command = ["-m", "lm_eval", "--model", "hf-lora-drop"]
        command += ["--model_args", f"pretrained={tiny_base},peft={tiny_adapter},boundary=2,dtype=float32"]
        command += ["--tasks", task, "--limit", "16", "--device", "cpu", "--batch_size", "8"]
        command += ["--gen_kwargs", "max_gen_toks=6", "--output_path", str(tmp_path / output), "--log_samples", *extra]
        settings = {"HF_DATASETS_CACHE": str(tmp_path / "hf"), **environment}
        return Forked(command, said=tmp_path / f"{output}.log", **settings)

    return start


def metadata(shared_data, **entries):
    return "--metadata", json.dumps({"data_dir": str(shared_data / "samsum"), **entries})


def results_of(folder):
    (path,) = folder.rglob("results_*.json")
    return path, json.loads(path.read_text())


@pytest.mark.data
def test_killed_in_the_middle_and_run_again_no_call_is_made_twice(evaluate, serve, shared_data, tmp_path, capsys):
    lock, running = threading.Lock(), {}

    def behaviour(request, nth):
        with lock:  # one after another, so that what was answered before the kill has been stored
            if running.get("dead"):
                return Say(fault="drop")  # nobody is there to take an answer
            if len(server.billed) == 20 and "process" in running:
                time.sleep(1.0)
                os.kill(running.pop("process").pid, signal.SIGKILL)
                running["dead"] = True
                return Say(fault="drop")
            time.sleep(0.02)
            return Say(
                score_json(len(request.prompt) % 11), model="judge-1-mini" if request.provider == "google" else None
            )

    server = serve(behaviour)
    panel = tmp_path / "panel.yaml"
    panel.write_text(yaml.safe_dump({"judges": [server.judge(p) for p in PROVIDERS], "backoff": 0.01}))
    arguments = metadata(shared_data, judges=str(panel))

    running["process"] = killed = evaluate("first", *arguments)
    assert killed.wait(timeout=300) == -signal.SIGKILL, (tmp_path / "first.log").read_text()
    assert not list((tmp_path / "first").rglob("results_*.json"))
    (saved,) = (tmp_path / "judged").glob("*.jsonl")
    assert len(read_items(saved)) == 16  # the generations outlived the kill
    before = len(server.requests)
    running["dead"] = False

    assert evaluate("second", *arguments).wait(timeout=300) == 0, (tmp_path / "second.log").read_text()
    assert set(server.billed.values()) == {1}
    assert len(server.requests) > before

    path, data = results_of(tmp_path / "second")
    table, record = data["results"]["lora_drop_samsum"], data["configs"]["lora_drop_samsum"]["metadata"]["gpt_score"]
    (samples,) = (tmp_path / "second").rglob("samples_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    per_judge = [[row[f"gpt_score_{p}-judge"][0] for row in rows] for p in PROVIDERS]
    means = [sum(column) / 3 for column in zip(*per_judge, strict=True)]
    assert [row["gpt_score"] for row in rows] == [[pytest.approx(value)] for value in means]
    assert table["gpt_score,none"] == pytest.approx(sum(means) / 16)
    deviation = (sum((value - sum(means) / 16) ** 2 for value in means) / 15) ** 0.5
    assert table["gpt_score_stderr,none"] == pytest.approx(deviation / 4)
    assert table["gpt_score_verdicts,none"] == 48
    for provider, column in zip(PROVIDERS, per_judge, strict=True):
        assert table[f"gpt_score_{provider}-judge,none"] == pytest.approx(sum(column) / 16)
    assert record["judges"]["google-judge"]["served_another_model"] == ["judge-1-mini"]
    assert data["higher_is_better"]["lora_drop_samsum"]["gpt_score"] is True
    assert "rouge_l,none" in table

    # Rescoring reads the same answers from the cache, free of charge, and comes to the same numbers.
    calls, old = len(server.requests), dict(table)
    for name in [name for name in table if name.startswith("gpt_score")]:
        del table[name]
    path.write_text(json.dumps(data))
    assert main(["judge", "rescore", str(path), "--panel", str(panel), "--offline"]) == 0
    assert len(server.requests) == calls
    rescored = json.loads(path.read_text())["results"]["lora_drop_samsum"]
    for name in ("gpt_score,none", "gpt_score_stderr,none", "gpt_score_agreement,none", "gpt_score_openai-judge,none"):
        assert rescored[name] == pytest.approx(old[name])
    assert [json.loads(line)["gpt_score"] for line in samples.read_text().splitlines()] == [
        r["gpt_score"] for r in rows
    ]
    assert "GPT-Score" in capsys.readouterr().out

    # No key in anything that was written: logs, results, samples, cache, saved outputs.
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) > 5
    for file in written:
        content = file.read_bytes()
        assert not any(key.encode() in content for key in KEYS.values()), file


def test_failing_judges_cost_no_other_result(serve, tiny_base, tiny_adapter, tmp_path, monkeypatch, caplog):
    server = serve(lambda request, nth: Say(status=401, error=f"wrong key {KEYS['openai']}"))
    panel = tmp_path / "panel.yaml"
    panel.write_text(yaml.safe_dump({"judges": [server.judge("openai")], "backoff": 0.01}))

    def evaluate():
        return evaluate_examples(tiny_base, tiny_adapter, "lora_drop_samsum", boundary="2")

    without = evaluate()
    monkeypatch.setenv("LORA_DROP_JUDGES", str(panel))
    failed = evaluate()
    name = "lora_drop_samsum"
    assert failed["results"][name]["rouge_l,none"] == without["results"][name]["rouge_l,none"]
    assert failed["results"][name]["gpt_score_verdicts,none"] == 0
    assert "wrong key [key]" in failed["configs"][name]["metadata"]["gpt_score"]["warnings"][0]
    assert not [metric for metric in without["results"][name] if metric.startswith("gpt_score")]
    assert KEYS["openai"] not in caplog.text + json.dumps(failed, default=str)


def test_a_sweep_asks_no_judge_unless_it_optimises_gpt_score(serve, tiny_base, tiny_adapter, tmp_path, monkeypatch):
    server = serve(lambda request, nth: Say(score_json(len(request.prompt) % 11)))
    panel = tmp_path / "panel.yaml"
    panel.write_text(yaml.safe_dump({"judges": [server.judge("openai")], "backoff": 0.01}))
    monkeypatch.setenv("LORA_DROP_JUDGES", str(panel))

    def evaluate(metric):
        arguments = {"boundary": "auto", "sweep_limit": 2, "sweep_metric": metric, "sweep_dir": str(tmp_path / "sweep")}
        found = evaluate_examples(tiny_base, tiny_adapter, "lora_drop_samsum", **arguments)
        return found["config"]["lora_drop"]["tasks"]["lora_drop_samsum"]

    evaluate("rouge_l")
    assert len(server.requests) <= 2  # the evaluated documents
    record = evaluate("gpt_score")
    assert record["metric"]["name"] == "gpt_score"
    assert all(0 <= entry["score"] <= 100 for entry in record["sweep"]["candidates"])
    assert len(server.requests) > 2
    assert max(server.billed.values()) == 1


@pytest.mark.data
def test_any_task_is_judged_by_a_rubric_at_the_end_of_the_run(evaluate, serve, shared_data, tmp_path):
    server = serve(lambda request, nth: Say(score_json(4)))
    panel, rubric = tmp_path / "panel.yaml", tmp_path / "rubric.yaml"
    panel.write_text(yaml.safe_dump({"judges": [server.judge("openai")], "backoff": 0.01}))
    rubric.write_text(yaml.safe_dump({"text": "solution of a word problem", "source": "question", "scale": [1, 5]}))
    given = {"data_dir": str(shared_data / "gsm8k"), "judges": str(panel), "rubric": str(rubric)}
    arguments = ["--metadata", json.dumps(given)]
    assert evaluate("judged", *arguments, task="lora_drop_gsm8k").wait(timeout=300) == 0, (
        tmp_path / "judged.log"
    ).read_text()
    _, data = results_of(tmp_path / "judged")
    (score,) = (v for name, v in data["results"]["lora_drop_gsm8k"].items() if name.startswith("gpt_score,"))
    assert score == 75.0
    assert len(server.requests) == 16
    assert "solution of a word problem" in server.requests[0].prompt
    log = (tmp_path / "judged.log").read_text()
    assert "lora_drop_gsm8k: GPT-Score 75.0 %, coverage 100%" in log
    assert "Traceback" not in log

    # Without the samples there would be nothing to judge: said before the model is loaded.
    rubric.write_text("nonsense: 1")
    refused = evaluate("refused", *arguments, task="lora_drop_gsm8k")
    assert refused.wait(timeout=300) == 1
    assert "there is no option nonsense" in (tmp_path / "refused.log").read_text()
