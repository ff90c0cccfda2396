"""Exports of every kind of choice in vLLM: what plain PEFT answers with the same folder."""

import json

import pytest

from lm_eval_lora_drop.adapter.export import export_adapter
from lm_eval_lora_drop.commands import main as cli
from lm_eval_lora_drop.variant import Variant
from testing.tiny import make_adapter

SETTINGS = {
    "plain": {},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3}, "use_rslora": True},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("notation", ["0-1", "1-2", "0-3x0.5", "0-3.attention", "0-3r2"])
def test_vllm_answers_as_peft_does(notation, setting, tiny_base, tmp_path):
    """Patterns and rsLoRA included, which vLLM would pass over in the adapter as it was trained."""
    from lm_eval_lora_drop.adapter.agreement import PROMPTS, check_agreement
    from lm_eval_lora_drop.backends.vllm_lora import answers_of

    adapter = make_adapter(tiny_base, tmp_path / "adapter", **SETTINGS[setting])
    export_adapter(adapter, kept := Variant.parse(notation, 4), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["rank_pattern"] == {}
    found = check_agreement(
        str(adapter), kept, str(tiny_base), export=tmp_path / "out", prompts=PROMPTS[:3], scratch=tmp_path,
        others={"vLLM": lambda folder, asked, tokens: answers_of(str(tiny_base), folder, asked, tokens, "float32")},
    )  # fmt: skip
    assert {row.name: row.agrees for row in found.rows}["vLLM"], found.table()


def test_the_command_asks_vllm_where_it_is_installed(tiny_base, tmp_path, capsys):
    adapter = make_adapter(tiny_base, tmp_path / "adapter")
    assert cli.main(["check", "--peft", str(adapter), "--boundary", "2"]) == 0
    assert "not installed" not in capsys.readouterr().out
