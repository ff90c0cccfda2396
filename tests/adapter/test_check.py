"""`lora-drop check`: a good export agrees; a damaged one, another choice's, or one for another base is found."""

import json
import re

import pytest
from safetensors.torch import load_file, save_file

from lm_eval_lora_drop.adapter.agreement import check_agreement
from lm_eval_lora_drop.adapter.export import export_adapter
from lm_eval_lora_drop.adapter.merge import merge_adapter
from lm_eval_lora_drop.commands import main as cli
from lm_eval_lora_drop.variant import Variant
from testing.tiny import make_adapter
from tests.adapter.test_health import mixture
from tests.backends.test_odd_adapters import tied_copy, trained

LAYERS = 4


def run(capsys, *arguments):
    code = cli.main(["check", "--tokens", "3", *map(str, arguments)])
    return code, capsys.readouterr()


def verdicts(text):
    """First words of the table's last column, by way."""
    rows = [line.split("  ") for line in text.splitlines() if line[:1].isalpha() and "  " in line]
    return {row[0].strip(): row[-1].strip() for row in rows}


@pytest.mark.parametrize("choice", [("--boundary", 2), ("--layers", "1-2"), ("--layers", "0-1x0.5+3r2.mlp")])
def test_an_export_made_now_agrees(choice, tiny_adapter, capsys):
    code, said = run(capsys, "--peft", tiny_adapter, *choice)
    assert code == 0, said
    found = verdicts(said.out)
    assert found["base model"] == "differs, as it should"
    assert found["merged weights, in memory"] == found["export (made now)"] == "agrees"


@pytest.fixture
def export(tiny_adapter, tmp_path):
    export_adapter(tiny_adapter, Variant.below(2, LAYERS), tmp_path / "out")
    return tmp_path / "out"


def damage(folder, change):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def configure(folder, **config):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))


NAME = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
DAMAGES = {
    "one matrix is zero": (lambda f: damage(f, lambda t: t[NAME].zero_()), "DIFFERS"),
    "one matrix is another's": (lambda f: damage(f, lambda t: t[NAME].copy_(t[NAME.replace(".1.", ".0.")])), "DIFFERS"),
    "another alpha": (lambda f: configure(f, lora_alpha=9), "DIFFERS"),
    "one NaN": (lambda f: damage(f, lambda t: t[NAME][0, 0].fill_(float("nan"))), "REFUSED: .*NaN"),
    "a module is missing": (lambda f: damage(f, lambda t: t.pop(NAME)), "REFUSED: .*half of the LoRA"),
    "a layer is not named": (lambda f: configure(f, layers_to_transform=[0]), "REFUSED: .*does not get into the model"),
    "a torn file": (
        lambda f: (f / "adapter_model.safetensors").write_bytes((f / "adapter_model.safetensors").read_bytes()[:-9]),
        "REFUSED: .*truncated",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_export_is_found(name, export, tiny_adapter, capsys):
    change, verdict = DAMAGES[name]
    change(export)
    code, said = run(capsys, "--peft", tiny_adapter, "--boundary", 2, "--export", export)
    assert code == 1
    assert re.match(verdict, verdicts(said.out)["export out"]), said.out
    assert verdicts(said.out)["merged weights, in memory"] == "agrees"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_model_agrees_up_to_its_dtype(dtype, tiny_adapter, tmp_path, capsys):
    merge_adapter(tiny_adapter, Variant.below(2, LAYERS), tmp_path / "merged", dtype=dtype)
    arguments = ("--peft", tiny_adapter, "--export", tmp_path / "merged", "--boundary")
    assert run(capsys, *arguments, 2)[0] == 0
    code, said = run(capsys, *arguments, 4)
    assert code == 1
    assert verdicts(said.out)["export merged"].startswith("DIFFERS")


def test_an_adapter_that_cannot_be_merged_is_checked_without(tiny_base, tmp_path, capsys):
    """Was REFUSED with exit status 1, though everything that can be done with it agrees."""
    adapter = make_adapter(tiny_base, tmp_path / "adapter", layer_replication=[[0, 3], [1, 4]])
    code, said = run(capsys, "--peft", adapter, "--boundary", 5)
    assert code == 0, said
    found = verdicts(said.out)
    assert re.match("not possible: .*one weight that they share", found["merged weights, in memory"])
    assert found["export (made now)"] == "agrees"
    assert "Left of the LoRA" not in said.out


def test_lora_on_experts_is_merged_and_measured(tmp_path, capsys):
    base, adapter = mixture("mixtral", tmp_path)
    code, said = run(capsys, "--peft", adapter, "--pretrained", base, "--boundary", 3)
    assert code == 0, said
    assert verdicts(said.out)["merged weights, in memory"] == "agrees"
    assert "folded into weights of float32: 1.000" in said.out


def test_an_adapter_that_does_nothing_on_the_prompts(tiny_base, tmp_path, capsys):
    """Ten million times weaker it is not zero, and no export of it can be told from the base model."""
    adapter = make_adapter(tiny_base, tmp_path / "adapter")
    damage(adapter, lambda tensors: [tensor.mul_(1e-7) for name, tensor in tensors.items() if "lora_B" in name])
    code, said = run(capsys, "--peft", adapter, "--boundary", 2)
    assert code == 1
    assert verdicts(said.out)["base model"].startswith("NO DIFFERENCE")
    assert verdicts(said.out)["export (made now)"].startswith("INCONCLUSIVE")


def test_a_way_that_answers_nothing_finite_differs(tiny_base, tiny_adapter, tmp_path):
    """Another program's NaN is no agreement; one that is not asked says why and decides nothing."""
    from lm_eval_lora_drop.adapter.agreement import PromptOutputs

    def ask(folder, asked, tokens):
        assert (folder / "adapter_config.json").is_file()
        return PromptOutputs(tuple((float("nan"),) * (len(ids) - 1) for ids in asked), tuple(() for _ in asked))

    found = check_agreement(
        str(tiny_adapter), Variant.below(2, LAYERS), str(tiny_base), scratch=tmp_path, tokens=2,
        others={"broken": ask, "absent": "not installed"},
    )  # fmt: skip
    rows = {row.name: row for row in found.rows}
    assert (rows["broken"].agrees, rows["broken"].difference) == (False, float("inf"))
    assert (rows["absent"].agrees, rows["absent"].note) == (None, "not installed")
    assert not found.agrees


def test_prompts_of_a_file_or_of_a_run(tiny_adapter, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("one question?\n\nanother question?\nand a third one\n")
    rows = [{"arguments": {"gen_args_0": {"arg_0": f"question\u2028{i}?"}}} for i in (0, 0, 1)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "samples_t.jsonl").write_text(lines, encoding="utf-8")
    for name, number in (("prompts.txt", 2), ("samples_t.jsonl", 2)):
        arguments = ("--peft", tiny_adapter, "--boundary", 2, "--prompts", tmp_path / name, "--limit", 2)
        code, said = run(capsys, *arguments)
        assert code == 0
        assert f"the reference: {number} prompts" in said.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--boundary", "2", "--export", "/nowhere"], "--export must be a folder"),
        (["--boundary", "2", "--prompts", "/nowhere"], "cannot be read"),
        (["--boundary", "0"], "there is nothing to check: nothing is kept"),
        (["--layers", "0-3.nope"], "nope"),
        ([], "exactly one of --boundary, --layers and --results"),
    ],
)
def test_bad_input(arguments, message, tiny_adapter, capsys):
    code, said = run(capsys, "--peft", tiny_adapter, *arguments)
    assert code == 1
    assert message in said.err
    assert "Traceback" not in said.err


def test_a_tied_head_that_plain_peft_does_not_train_is_no_agreement(tiny_base, tmp_path, capsys):
    """lm_eval ties the head to the trained embedding, plain PEFT leaves it to the base model: other logits."""
    base = tied_copy(tiny_base, tmp_path / "tied")
    adapter = trained(base, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    code, said = run(capsys, "--peft", adapter, "--boundary", "full")
    assert code == 1
    assert verdicts(said.out)["export (made now)"].startswith("DIFFERS")
    assert "lm_head is the trained embedding, as with --model hf" in said.out


@pytest.mark.smollm2
def test_bfloat16_at_a_quarter_of_the_strength(smollm2, shared_adapters, capsys):
    """Was called NO DIFFERENCE with 31 of 90 tokens different: the tolerance was fixed, the noise of the run is not."""
    adapter = shared_adapters / "samsum-smollm2-r8"
    given = ("--peft", adapter, "--pretrained", smollm2, "--dtype", "bfloat16", "--layers", "0-29x0.25")
    code, said = run(capsys, *given, "--tokens", 8)
    found = verdicts(said.out)
    assert found["base model"] == "differs, as it should"
    assert found["export (made now)"] == "agrees"
    assert "folded into weights of bfloat16: 0.59" in said.out
    assert code in (0, 1)
