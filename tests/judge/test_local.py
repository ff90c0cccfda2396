"""A local Transformers model as a judge, for real: it answers, is asked once, and costs nothing."""

import json

import pytest

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.judge.cache import Cache, answer_key
from lm_eval_lora_drop.judge.panel import parse_panel
from lm_eval_lora_drop.judge.score import Item, score


@pytest.mark.smollm2
@pytest.mark.data
def test_smollm2_judges_summaries(smollm2, shared_data, cache):
    with (shared_data / "samsum" / "test.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(3), strict=False)]
    items = [Item("summary", row["dialogue"], row["summary"], row["summary"]) for row in rows]
    panel = parse_panel({"judges": [{"name": "local", "provider": "hf", "model": str(smollm2), "max_tokens": 8}]}, "x")
    found = score(panel, items, cache)
    told = found.to_json()["judges"]["local"]
    assert found.verdicts + sum(told["without_verdict"].values()) == 3
    assert found.verdicts > 0
    assert all(value is None or 0 <= value <= 10 for value in found.by_judge["local"])
    assert told["served_models"] == {str(smollm2): found.verdicts}
    assert found.answers.bill.dollars == 0
    again = score(panel, items, cache)
    assert again.by_judge == found.by_judge
    assert again.answers.bill.calls == 0


def test_a_model_that_is_not_there_is_no_verdict_and_names_the_model(tmp_path, cache):
    judge = {"name": "local", "provider": "hf", "model": str(tmp_path / "none")}
    found = score(parse_panel({"judges": [judge]}, "x"), [Item("summary", "a", "b", "c")] * 3, cache)
    assert found.verdicts == 0
    assert "cannot be loaded" in found.warnings()[0]


def test_several_samples_of_a_local_judge_differ_and_can_be_had_again(tiny_base, cache, tmp_path):
    judge = {
        "name": "local",
        "provider": "hf",
        "model": str(tiny_base),
        "max_tokens": 12,
        "options": {"temperature": 1.0},
    }
    panel = parse_panel({"judges": [judge], "samples": 3}, "x")
    item = Item("summary", "a", "b", "c")

    def texts(some):
        score(panel, [item], some)
        asked = (item.question(panel.judges[0], None, sample) for sample in range(3))
        return [json.loads(body)["text"] for one in asked for body in some.bodies(answer_key(panel.judges[0], one))]

    first = texts(cache)
    assert len(set(first)) == 3
    assert texts(Cache(tmp_path / "again.sqlite")) == first


def test_greedy_samples_of_a_local_judge_are_refused(tiny_base):
    with pytest.raises(ArgumentError, match="temperature"):
        parse_panel({"judges": [{"provider": "hf", "model": str(tiny_base)}], "samples": 2}, "x")
