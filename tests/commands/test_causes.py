"""`lora-drop check` names why a LoRA scores below its base model; the option that it prints cures it."""

import json
import re
import shutil

import pytest
import transformers
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing

from lm_eval_lora_drop.commands import main as cli
from lm_eval_lora_drop.record.find import only_run
from testing.run_files import write_run
from testing.tiny import CHAT_TEMPLATE

SYSTEM = "{% if messages[0]['role'] != 'system' %}<s>system: You are Tiny.</s>{% endif %}" + CHAT_TEMPLATE


def tokenizer(base, **changes):
    made = transformers.AutoTokenizer.from_pretrained(base)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def begins_with_bos(base):
    made = tokenizer(base, chat_template=None)
    made.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def ends_with_another(base):
    made = tokenizer(base, chat_template=None)
    made.add_special_tokens({"eos_token": "<pad>"})
    return made


PLANTED = {
    "a chat template": (
        lambda base: tokenizer(base),
        r"has a chat template, and none is applied",
        "--apply_chat_template",
    ),
    "another chat template": (lambda base: tokenizer(base, chat_template=SYSTEM), "has a chat template", "tokenizer="),
    "a first token": (begins_with_bos, r"BOS, <s>\) is missing", "add_bos_token=True"),
    "another end token": (ends_with_another, "end its answers with <pad>", "--gen_kwargs"),
}


def check(capsys, adapter, base, *more):
    """The findings, and what was said."""
    cli.main(["check", "--peft", str(adapter), "--pretrained", str(base), "--tokens", "1", *map(str, more)])
    said = capsys.readouterr()
    return [line for line in said.out.splitlines() if line.startswith("- ")], said


@pytest.fixture
def adapter(tiny_adapter, tmp_path):
    """A copy to plant a cause in."""
    return shutil.copytree(tiny_adapter, tmp_path / "planted")


def run_with(tmp_path, adapter, base, finding):
    """A results file of a run that was given what the finding says."""
    from lm_eval_lora_drop.adapter.files import open_adapter
    from testing.run_files import swept

    record = swept()
    record["adapter"] |= {"path": str(adapter), "fingerprint": open_adapter(str(adapter)).fingerprint()}
    path = write_run(tmp_path / "run", {"acc": [0.0, 1.0]}, lora_drop=record)
    data = json.loads(path.read_text())
    args = data["config"]["model_args"] | {"pretrained": str(base), "peft": str(adapter)}
    args |= dict(re.findall(r"(tokenizer|add_bos_token|revision|dtype|pretrained)=([^ ]+[^ .])", finding))
    if "--apply_chat_template" in finding:
        data["chat_template"] = "applied"
    if found := re.search(r"--gen_kwargs '(until=.*)'", finding):
        from lm_eval.utils import simple_parse_args_string

        data["config"]["gen_kwargs"] = simple_parse_args_string(found[1])
    data["config"]["model_args"] = args
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize("cause", PLANTED)
def test_a_planted_cause_is_found_and_cured_by_what_is_printed(cause, adapter, tiny_base, tmp_path, capsys):
    plant, finding, option = PLANTED[cause]
    plant(tiny_base).save_pretrained(adapter)
    found, said = check(capsys, adapter, tiny_base, "--boundary", "full")
    assert len(found) == 1, said.out
    assert re.search(finding, found[0])
    assert option in found[0]
    run = run_with(tmp_path, adapter, tiny_base, found[0])
    cured, said = check(capsys, adapter, tiny_base, "--results", run)
    assert cured == [], said
    # And it is a cure: lm_eval given these options asks as the adapter's tokenizer would.
    given = {k: v for k, v in only_run(run).model_args.items() if k in ("tokenizer", "add_bos_token")}
    given = {k: v == "True" if k == "add_bos_token" else v for k, v in given.items()}
    lm = HFLM(str(tiny_base), peft=str(adapter), device="cpu", **given)
    trained = transformers.AutoTokenizer.from_pretrained(adapter)
    if "--apply_chat_template" in found[0]:
        chat = [{"role": "user", "content": "the question"}]
        assert lm.apply_chat_template(chat) == trained.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True
        )
    if cause == "a first token":
        assert lm.tok_encode("the question") == trained("the question").input_ids


def configure(adapter, **config):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))


def stored_in(adapter, dtype):
    file = adapter / "adapter_model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file, {"format": "pt"})


def test_another_base_model_revision_and_dtype(adapter, tiny_base, tmp_path, capsys):
    import torch

    configure(adapter, base_model_name_or_path="unsloth/other-bnb-4bit", revision="v2")
    stored_in(adapter, torch.bfloat16)
    half = shutil.copytree(tiny_base, tmp_path / "half")
    config = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps({**config, "dtype": "float16", "torch_dtype": "float16"}))
    found, said = check(capsys, adapter, half, "--boundary", "full")
    text = "\n".join(found)
    assert re.search(
        r"trained on unsloth/other-bnb-4bit \(a quantised one\).*pretrained=unsloth/other-bnb-4bit", text
    ), said
    assert "Give revision=v2" in text
    assert "Give dtype=bfloat16" in text
    assert len(found) == 3
    configure(adapter, base_model_name_or_path=str(half))
    run = run_with(tmp_path, adapter, half, "revision=v2 in --model_args, dtype=bfloat16 in --model_args")
    assert check(capsys, adapter, half, "--results", run)[0] == []


def test_prompts_that_end_in_a_space_or_begin_twice(adapter, tiny_base, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("question: one answer: \nquestion: two answer:\n<s><s>question: three\n")
    found, _ = check(capsys, adapter, tiny_base, "--boundary", "full", "--prompts", tmp_path / "prompts.txt")
    assert [line[:29] for line in found] == ["- 1 of 3 prompts begin with <", "- 1 of 3 prompts end in a spa"]


def test_a_system_prompt_that_replaces_the_adapters_own(adapter, tiny_base, tmp_path, capsys):
    tokenizer(tiny_base, chat_template=SYSTEM).save_pretrained(adapter)
    run = run_with(tmp_path, adapter, tiny_base, f"--apply_chat_template tokenizer={adapter} ")
    data = json.loads(run.read_text())
    run.write_text(json.dumps({**data, "system_instruction": "Answer in French."}))
    found, said = check(capsys, adapter, tiny_base, "--results", run)
    assert len(found) == 1, said
    assert "You are Tiny" in found[0]
    assert "Leave out --system_instruction" in found[0]


def test_an_adapter_without_a_cause_has_no_finding(tiny_adapter, tiny_base, capsys):
    assert check(capsys, tiny_adapter, tiny_base, "--boundary", "full")[0] == []


@pytest.mark.parametrize("template", ["{{ raise_exception('no \x1b[2J') }}", "{% for", "{{ messages[9].content }}"])
def test_a_template_that_fails_ends_no_check(template, adapter, tiny_base, capsys):
    tokenizer(tiny_base, chat_template=template).save_pretrained(adapter)
    found, said = check(capsys, adapter, tiny_base, "--boundary", "full")
    assert len(found) == 1
    assert "cannot be compared" in found[0] or "chat template" in found[0]
    assert "\x1b" not in said.out
