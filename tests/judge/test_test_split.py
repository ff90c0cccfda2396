"""A panel and the test split under several variants: paid for where it was asked for, under one cap."""

import json

import pytest
import yaml

from testing.judge_servers import Say, score_json
from testing.toy import evaluate_examples

TASK = "lora_drop_samsum"
ALL = "chosen+full+base"


@pytest.fixture
def judged(serve, tiny_base, tiny_adapter, tmp_path, monkeypatch):
    """Evaluate two dialogues under a panel of one judge; the task's results, its record, and the server."""
    server = serve(lambda request, nth: Say(score_json(len(request.prompt) % 11)))

    def run(sweep_dir="journals", panel=None, **model_args):
        file = tmp_path / "panel.yaml"
        file.write_text(
            yaml.safe_dump(
                {"judges": [server.judge("openai", **(panel or {}).pop("judge", {}))], "backoff": 0.01, **(panel or {})}
            )
        )
        monkeypatch.setenv("LORA_DROP_JUDGES", str(file))
        given = {"boundary": "2", "sweep_dir": str(tmp_path / sweep_dir), **model_args}
        found = evaluate_examples(tiny_base, tiny_adapter, TASK, **given)
        json.dumps(found["config"]["lora_drop"])
        return found, found["config"]["lora_drop"]["tasks"][TASK]["evaluated"]

    run.server = server
    return run


def gpt_scores(evaluated):
    return {
        row["variant"]: next((s["score"] for s in row["scores"] if s["metric"]["name"] == "gpt_score"), None)
        for row in evaluated["rows"]
    }


def test_each_variant_is_judged_as_in_a_run_of_its_own(judged):
    results, evaluated = judged(evaluate=ALL)
    asked = len(judged.server.requests)
    found = gpt_scores(evaluated)
    for variant, boundary in (("0-1", "2"), ("0-3", "full"), ("none", "base")):
        alone, _ = judged(boundary=boundary, evaluate="chosen")
        assert found[variant] == pytest.approx(alone["results"][TASK]["gpt_score,none"]), variant
        if boundary == "2":
            assert results["results"] == alone["results"]
            assert results["configs"][TASK]["metadata"]["gpt_score"]["items"] == 1
    # All of these had been judged by the first run, and none of them twice.
    assert len(judged.server.requests) == asked <= 6
    assert max(judged.server.billed.values()) == 1
