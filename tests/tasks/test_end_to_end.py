"""Every task through the stock evaluation with `boundary=auto`, on the invented documents and a tiny model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from testing.records import scores_by_k
from testing.toy import evaluate_examples
from tests.tasks.test_yaml import EVALUATED, FIRST_METRIC

SHAPE = {"cut_off", "empty"}


@pytest.fixture(scope="module")
def results(tiny_base: Path, tiny_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run of the group, as `--tasks lora_drop_all` makes it."""
    sweep_dir = str(tmp_path_factory.mktemp("journal"))
    found = evaluate_examples(
        tiny_base, tiny_adapter, "lora_drop_all", max_gen_toks=8, boundary="auto", sweep_limit=2, sweep_dir=sweep_dir
    )
    assert found is not None
    return found


@pytest.mark.parametrize("name", FIRST_METRIC)
def test_every_task_runs(results: dict[str, Any], name: str) -> None:
    """A boundary by the task's first metric, from the other split; then every metric of the YAML."""
    record = results["config"]["lora_drop"]["tasks"][name]
    assert record["method"] == "sweep"
    assert record["metric"]["name"] == FIRST_METRIC[name]
    assert record["validation"]["split"] != EVALUATED[name]
    assert set(scores_by_k(record)) == set(range(record["num_layers"] + 1))
    values = {key.split(",")[0]: value for key, value in results["results"][name].items() if "," in key}
    listed = {metric["metric"] for metric in results["configs"][name]["metric_list"]}
    assert listed <= set(values)
    assert listed >= SHAPE
    assert math.isfinite(values[FIRST_METRIC[name]])


def test_the_signature_is_in_the_results(results: dict[str, Any]) -> None:
    """A score of sacrebleu is never without its signature."""
    metrics = results["configs"]["lora_drop_wmt23_en_zh"]["metric_list"]
    assert metrics[0]["aggregation"].startswith("BLEU nrefs:1|case:mixed|eff:no|tok:zh|smooth:exp|version:")
