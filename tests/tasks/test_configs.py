"""The configs: the paper's experiments, and the examples of another prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval.config.evaluate_config import EvaluatorConfig

from lm_eval_lora_drop.options import parse_model_args
from tests.tasks.conftest import ROOT

PAPER = ROOT / "configs" / "paper"
BOUNDARIES = {"base": "base", "full": "full", "k20": 20, "auto": "auto"}
EXPERIMENTS = {
    "hotpotqa": ["lora_drop_hotpotqa"],
    "gsm8k": ["lora_drop_gsm8k"],
    "samsum": ["lora_drop_samsum"],
    "wmt23_en_zh": ["lora_drop_wmt23_en_zh"],
    "out_of_domain": ["lora_drop_wikimatrix_en_zh", "lora_drop_paramed_en_zh"],
    "ecommerce": ["lora_drop_ecommerce"],
}


def test_every_experiment_in_every_setting() -> None:
    """Nothing is missing and nothing is there that no README names."""
    found = {str(path.relative_to(PAPER)) for path in PAPER.rglob("*.yaml")}
    assert found == {f"{experiment}/{setting}.yaml" for experiment in EXPERIMENTS for setting in BOUNDARIES}


@pytest.mark.parametrize("setting", BOUNDARIES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_read_by_the_harness(experiment: str, setting: str) -> None:
    """`lm_eval run --config` takes the file; model_args are ours and valid; each run writes to a place of its own."""
    config = EvaluatorConfig.from_config(PAPER / experiment / f"{setting}.yaml")
    assert config.model == "hf-lora-drop"
    assert config.tasks == EXPERIMENTS[experiment]
    assert config.model_args["boundary"] == BOUNDARIES[setting]
    assert config.output_path == f"results/paper/{experiment}/{setting}"
    parse_model_args(config.model_args, known={"pretrained", "peft", "dtype"})
    assert all(list((ROOT / "tasks").glob(f"*/{task}.yaml")) for task in config.tasks)


def test_settings_differ_in_the_boundary_only() -> None:
    """Runs of one experiment can be compared: same adapter, same tasks, same type."""
    for experiment in EXPERIMENTS:
        configs = [EvaluatorConfig.from_config(PAPER / experiment / f"{setting}.yaml") for setting in BOUNDARIES]
        assert len({str({**one.model_args, "boundary": None}) for one in configs}) == 1
        assert len({(str(one.tasks), one.batch_size) for one in configs}) == 1


def test_another_prompt(shared_data: Path, load_task: Callable[..., Any]) -> None:
    """The example changes the prompt; data, splits, metrics and scoring are those of our task."""
    theirs = load_task("samsum_other_prompt", include_path=ROOT / "configs/examples", data_dir=str(shared_data))
    ours = load_task("lora_drop_samsum", data_dir=str(shared_data))
    doc = theirs.eval_docs[0]
    assert theirs.doc_to_text(doc).startswith(
        "### Instruction:\nSummarise the conversation.\n\n### Input:\nEric: MACHINE!"
    )
    assert theirs.doc_to_text(doc).endswith("\n\n### Response:")
    assert theirs.config.target_delimiter == "\n"
    assert theirs.dataset["test"].to_list() == ours.dataset["test"].to_list()
    assert list(theirs.aggregation()) == list(ours.aggregation())
    assert theirs.process_results(doc, ["Eric watches."]) == ours.process_results(doc, ["Eric watches."])


def test_a_chat_template(shared_data: Path, load_task: Callable[..., Any]) -> None:
    """The prompt goes through the model's template; the filters stay."""
    task = load_task("gsm8k_chat", include_path=ROOT / "configs/examples", data_dir=str(shared_data))

    def template(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return "".join(f"<{one['role']}>{one['content']}" for one in messages) + "<assistant>" * add_generation_prompt

    task.build_all_requests(limit=1, rank=0, world_size=1, apply_chat_template=True, chat_template=template)
    prompt = task.instances[0].args[0]
    assert prompt.startswith("<user>")
    assert prompt.endswith("#### <number>'.<assistant>")
    assert [one.name for one in task._filters] == ["strict-match", "flexible-extract", "output"]
