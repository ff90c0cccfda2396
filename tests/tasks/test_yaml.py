"""The task files as the harness sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval.tasks import TaskManager

from lm_eval_lora_drop.metrics.filters import Written
from testing.forked import Forked
from tests.tasks.conftest import ROOT

FIRST_METRIC = {
    "lora_drop_hotpotqa": "contains_em",
    "lora_drop_gsm8k": "exact_match",
    "lora_drop_samsum": "rouge_l",
    "lora_drop_wmt23_en_zh": "bleu",
    "lora_drop_ecommerce": "acc",
    "lora_drop_wikimatrix_en_zh": "bleu",
    "lora_drop_paramed_en_zh": "bleu",
    "lora_drop_json": "field_f1",
}
EVALUATED = dict.fromkeys(FIRST_METRIC, "test") | {"lora_drop_hotpotqa": "validation"}


def read_yaml(name: str) -> tuple[Path, dict[str, Any]]:
    """The file of a task and its content, `!function` as a string, `include` followed."""
    from lm_eval.tasks._yaml_loader import load_yaml

    (path,) = (ROOT / "tasks").glob(f"*/{name}.yaml")
    return path, load_yaml(path, resolve_func=False)


@pytest.mark.parametrize("name", FIRST_METRIC)
def test_the_first_metric_is_the_one_to_optimise(name: str) -> None:
    """Design, section 7. The harness's own order of `metric_list` decides, and every metric says which way is up."""
    _, task = read_yaml(name)
    assert task["metric_list"][0]["metric"] == FIRST_METRIC[name]
    assert task["metric_list"][0]["higher_is_better"] is True
    assert all("higher_is_better" in metric and "aggregation" in metric for metric in task["metric_list"])


@pytest.mark.parametrize("name", FIRST_METRIC)
def test_validation_documents_come_from_another_split(name: str) -> None:
    """The split that the boundary is sought on is never the one that is evaluated."""
    _, task = read_yaml(name)
    assert task["test_split"] == EVALUATED[name]
    source = task.get("validation_split") or task["training_split"]
    assert source != task["test_split"]
    assert task["fewshot_split"] != task["test_split"]


@pytest.mark.parametrize("name", FIRST_METRIC)
def test_cut_off_goes_by_the_limit_of_the_run(name: str, load_task: Callable[..., Any]) -> None:
    """That of the YAML, or of `--gen_kwargs`, whatever its name there."""
    task = load_task(name, data_dir=str(ROOT / "docs" / "example_data"))
    limit = read_yaml(name)[1]["generation_kwargs"]["max_gen_toks"]
    doc = task.eval_docs[0]

    def cut_off(length: int) -> float:
        return float(task.process_results(doc, [Written("x" * length)])["cut_off"])

    assert (cut_off(limit - 1), cut_off(limit)) == (0.0, 1.0)
    for alias in ("max_gen_toks", "max_new_tokens"):
        settings = {key: value for key, value in task.config.generation_kwargs.items() if "max" not in key}
        task.set_config("generation_kwargs", settings)
        task.set_config("generation_kwargs", {alias: 7}, update=True)
        assert (cut_off(6), cut_off(7), cut_off(limit)) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize("name", FIRST_METRIC)
def test_every_folder_tells_about_itself(name: str) -> None:
    """Paper, licence, splits and prompt stand in the README beside the YAML."""
    path, _ = read_yaml(name)
    text = (path.parent / "README.md").read_text(encoding="utf-8")
    assert f"`{name}`" in text
    for heading in ("## Paper", "## Licence", "## Splits", "## Prompt", "## Metrics"):
        assert heading in text


def test_groups() -> None:
    """`lora_drop` is the paper's four; `lora_drop_all` has every benchmark there is."""
    four = yaml.safe_load((ROOT / "tasks/lora_drop.yaml").read_text())["task"]
    every = yaml.safe_load((ROOT / "tasks/lora_drop_all.yaml").read_text())["task"]
    assert four == list(FIRST_METRIC)[:4]
    assert every == ["lora_drop", *list(FIRST_METRIC)[4:]]


def test_the_harness_finds_them_valid() -> None:
    """`lm_eval validate` passes every task and group; what `lm_eval ls tasks` prints has them."""
    names = [*FIRST_METRIC, "lora_drop", "lora_drop_all"]
    process = Forked(["-m", "lm_eval", "validate", "--tasks", ",".join(names), "--include_path", str(ROOT / "tasks")])
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "All tasks found and valid" in out
    listed = TaskManager(include_path=str(ROOT / "tasks"), include_defaults=False).list_all_tasks()
    assert all(f"|{name} " in listed or f"|{name}|" in listed for name in names)
