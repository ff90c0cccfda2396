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
    server = serve(lambda request, nth: Say(score_json(len(request.prompt) % 11), change=run.change))

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

    run.server, run.change = server, None
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


CALL = 0.00104
"""US dollars of a call of `dear`, whatever its prompt."""


def dear(body):
    """A response of 1,000 tokens in and 4 out, at the prices of the test servers."""
    body["usage"] = {"prompt_tokens": 1000, "completion_tokens": 4}
    return body


CAP = {"judge": {"max_tokens": 4}, "max_spend": 1.5 * CALL, "concurrency": {"openai": 1}}
"""Enough for one call and not for two."""


@pytest.mark.parametrize("evaluate", [ALL, "chosen+base"])
def test_one_cap_holds_for_all_variants_together(judged, evaluate):
    judged.change = dear
    for _ in range(2):  # a run that is taken up again has what the first one left
        results, evaluated = judged(evaluate=evaluate, panel=dict(CAP))
        assert sum(judged.server.billed.values()) == 1
    assert results["results"][TASK]["gpt_score_verdicts,none"] == 1
    assert results["configs"][TASK]["metadata"]["gpt_score"]["dollars"] == pytest.approx(CALL)
    found = gpt_scores(evaluated)
    assert found["0-1"] is not None
    assert list(found.values()).count(None) == len(found) - 1
    # With more money the rest is asked, and nothing twice.
    _, evaluated = judged(evaluate=evaluate, panel={**CAP, "max_spend": 1.0})
    assert max(judged.server.billed.values()) == 1
    assert None not in gpt_scores(evaluated).values()


def test_one_cap_holds_for_all_candidates_of_a_sweep(judged):
    judged.change = dear
    judged(boundary="auto", sweep_limit=2, sweep_metric="gpt_score", panel=dict(CAP))
    assert sum(judged.server.billed.values()) == 1


def test_what_was_not_asked_for_is_not_paid_for(judged):
    _, evaluated = judged(boundary="auto", sweep_limit=2, sweep_metric="rouge_l")
    assert len(judged.server.requests) <= 2  # the chosen outputs
    if evaluated is not None:
        assert all(score is None for score in gpt_scores(evaluated).values())
