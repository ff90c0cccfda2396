"""A local Transformers model as a judge, for real: it answers, is asked once, and costs nothing."""

import json

import pytest

from lm_eval_lora_drop.judge.panel import parse_panel
from lm_eval_lora_drop.judge.score import Item, score


@pytest.mark.smollm2
@pytest.mark.data
def test_smollm2_judges_eight_summaries(smollm2, shared_data, cache):
    with (shared_data / "samsum" / "test.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(8), strict=False)]
    items = [Item("summary", row["dialogue"], row["summary"], row["summary"]) for row in rows]
    panel = parse_panel({"judges": [{"name": "local", "provider": "hf", "model": str(smollm2), "max_tokens": 8}]}, "x")
    found = score(panel, items, cache)
    told = found.to_json()["judges"]["local"]
    assert found.verdicts + sum(told["without_verdict"].values()) == 8
    assert found.verdicts > 0
    assert all(value is None or 0 <= value <= 10 for value in found.by_judge["local"])
    assert told["served_models"] == {str(smollm2): 8}
    assert found.answers.bill.dollars == 0
    again = score(panel, items, cache)
    assert again.by_judge == found.by_judge
    assert again.answers.bill.calls == 0


def test_a_model_that_is_not_there_is_no_verdict_and_names_the_model(tmp_path, cache):
    judge = {"name": "local", "provider": "hf", "model": str(tmp_path / "none")}
    found = score(parse_panel({"judges": [judge]}, "x"), [Item("summary", "a", "b", "c")] * 3, cache)
    assert found.verdicts == 0
    assert "cannot be loaded" in found.warnings()[0]
