"""Adapters that are not LoRA alone: at every boundary they answer as `--model hf` does with the adapter edited by hand.

The oracle is HFLM at batch size 1 on a copy of the adapter from whose files what the boundary drops was deleted.
"""

import copy
import json
import logging
import re
import shutil

import peft
import pytest
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig
from safetensors.torch import load_file, save_file

from lm_eval_lora_drop.backends.hf import LoraDropLM
from lm_eval_lora_drop.errors import AdapterError, ArgumentError
from lm_eval_lora_drop.harness.documents import Document
from lm_eval_lora_drop.sweep.backend import Work
from lm_eval_lora_drop.variant import Variant
from testing.tiny import make_adapter, make_base

LAYERS = 4
Q = {"target_modules": ["q_proj"]}
PROMPTS = ["The question is", "a", "To be, or not to be: that is the question, and the answer"]
# Unequal, so that an activated LoRA is off in some prompts and on in others.
INVOCATION = [43, 44]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """The tiny model as it is, and with its head tied to its embedding."""
    folder = tmp_path_factory.mktemp("odd")
    untied = make_base(folder / "untied")
    return {"untied": untied, "tied": tied_copy(untied, folder / "tied")}


def tied_copy(base, folder):
    """A model like `base` whose head is its embedding."""
    shutil.copytree(base, folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.generation_config = transformers.GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
    return folder


def change_file(adapter, change):
    """Rewrite the tensors of an adapter: `change(name, tensor)` gives a tensor, or None for left out."""
    file = adapter / "adapter_model.safetensors"
    changed = {name: change(name, tensor) for name, tensor in load_file(file).items()}
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, file, {"format": "pt"})
    return adapter


def change_config(adapter, **entries):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def trained(base, folder, **lora):
    """An adapter whose fully trained modules and zero factors (MiCA) differ from what they started as."""
    torch.manual_seed(7)
    return change_file(
        make_adapter(base, folder, **lora),
        lambda name, t: (
            t if ("lora_" in name and t.any()) or "base_layer" in name else t + 0.2 * torch.randn(t.shape).to(t)
        ),
    )


def edited(adapter, folder, boundary):
    """A copy without what the boundary drops: LoRA of layers from there on, and what lies beside them."""
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())

    def lost(name):
        layer = re.search(r"\.layers\.(\d+)\.", name)
        if layer:
            return int(layer[1]) >= boundary
        is_trained = "lora_" in name or "trainable_tokens" in name or bool(config.get("modules_to_save"))
        if not is_trained or "base_layer" in name or "original_module" in name:
            return False  # an embedding saved along belongs to the base model
        return boundary == 0 if "embed" in name else boundary < LAYERS

    change_file(folder, lambda name, tensor: None if lost(name) else tensor)
    left = load_file(folder / "adapter_model.safetensors")
    saved = [one for one in config.get("modules_to_save") or [] if any(f"{one}.weight" in name for name in left)]
    tokens = config.get("trainable_token_indices") if boundary else None
    wrapper = r"\.(original_module|token_adapter\.base_layer)\." if boundary == 0 else r"\.original_module\."
    as_base = {name: re.sub(wrapper, ".", name) for name in left if re.search(wrapper, name)}
    left |= {new: left.pop(old) for old, new in as_base.items() if new not in left}
    save_file(left, folder / "adapter_model.safetensors", {"format": "pt"})
    change_config(folder, init_lora_weights=True, modules_to_save=saved or None, trainable_token_indices=tokens)
    return folder


def documents():
    """Text to write, and text to score."""
    until = {"until": ["q", "\n\n"], "max_gen_toks": 6, "do_sample": False}
    asked = [("generate_until", (prompt, until)) for prompt in PROMPTS]
    asked += [("loglikelihood", (prompt, " the other")) for prompt in PROMPTS]
    return [Document(i, {}, (Instance(kind, {}, args, 0),), str(i)) for i, (kind, args) in enumerate(asked)]


def harness(base, adapter, docs, **model_args):
    torch.manual_seed(3)
    with_adapter = {} if adapter is None else {"peft": str(adapter)}
    given = {"pretrained": str(base), "device": "cpu", "dtype": "float32", "batch_size": 1}
    lm = HFLM(**given, **with_adapter, **model_args)
    return [getattr(lm, doc.requests[0].request_type)(list(doc.requests), disable_tqdm=True)[0] for doc in docs]


def ours(base, adapter, **model_args):
    torch.manual_seed(3)
    given = {"pretrained": str(base), "device": "cpu", "dtype": "float32", "batch_size": 1, "boundary": "full"}
    return LoraDropLM(**{**given, "peft": str(adapter), **model_args})


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, str):
            assert one == other
        else:
            assert one[0] == pytest.approx(other[0], abs=2e-4)
            assert one[1] == other[1]


def answers(lm, docs, boundaries, engine):
    """By `engine`, boundary by boundary: as the sweep asks."""
    lm.args = copy.copy(lm.args)
    object.__setattr__(lm.args, "sweep_engine", engine)
    variants = tuple(Variant.below(boundary, LAYERS) for boundary in boundaries)
    found = {}
    for kind in ("generate_until", "loglikelihood"):
        mine = [doc for doc in docs if doc.requests[0].request_type == kind]
        run = lm.prepare(mine, variants)
        assert run.engine == ("plain" if engine == "plain" else "shared"), run.check
        for batch in run.runner([Work(doc, variants) for doc in mine]):
            for answer in batch:
                found[answer.variant.boundary, answer.document.doc_id] = answer.responses[0]
    return {boundary: [found[boundary, doc.doc_id] for doc in docs] for boundary in boundaries}


def check_every_boundary(base, adapter, tmp_path, engines=("auto", "plain"), **model_args):
    docs, boundaries = documents(), (LAYERS, 2, 0)
    expected = {
        k: harness(base, edited(adapter, tmp_path / f"edited{k}", k), docs, **model_args)
        for k in boundaries
        if k < LAYERS
    }
    expected[LAYERS] = harness(base, adapter, docs, **model_args)
    assert len({str(one) for one in expected.values()}) == len(boundaries), "equality would prove nothing"
    lm = ours(base, adapter, **model_args)
    for engine in engines:
        found = answers(lm, docs, boundaries, engine)
        for boundary in boundaries:
            assert_same(found[boundary], expected[boundary])
    return expected


@pytest.fixture(scope="module")
def without_adapter(bases):
    """What the harness says with each base model alone."""
    return {name: harness(base, None, documents()) for name, base in bases.items()}


KINDS = {
    "trained embedding and norms, tied": ("tied", {**Q, "modules_to_save": ["embed_tokens", "model.norm"]}),
    "LoRA on the embedding, tied": ("tied", {"target_modules": ["q_proj", "embed_tokens"]}),
    "trained final norm": ("untied", {**Q, "modules_to_save": ["model.norm"]}),
    "trained embedding and head": ("untied", {**Q, "modules_to_save": ["embed_tokens", "lm_head"]}),
    "trained tokens": ("untied", {**Q, "trainable_token_indices": [40, 41, 42]}),
    "MonteCLoRA": ("untied", {**Q, "monteclora_config": MontecloraConfig()}),
    "block-diagonal": ("untied", {**Q, "use_bdlora": BdLoraConfig(nblocks=2, target_modules_bd_a=["q_proj"])}),
    "MiCA": ("untied", {**Q, "init_lora_weights": "mica"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_boundary_is_the_harness_with_the_adapter_edited(kind, bases, without_adapter, tmp_path):
    """Shared and plain. K = 0 of a tied model with a trained embedding had the trained head; a final norm failed on the
    meta device; variants of LoRA have more than A and B."""
    name, lora = KINDS[kind]
    adapter = trained(bases[name], tmp_path / "adapter", **lora)
    expected = check_every_boundary(bases[name], adapter, tmp_path)
    assert_same(expected[0], without_adapter[name])


def test_a_strength_keeps_the_tied_head_of_a_trained_embedding(bases, tmp_path):
    """Windows and strengths decide by layer 0 as boundaries do; what is trained whole has no strength."""
    adapter = trained(bases["tied"], tmp_path / "adapter", **Q, modules_to_save=["embed_tokens"])
    docs = documents()
    lm = ours(bases["tied"], adapter)
    variants = tuple(Variant.parse(text, LAYERS) for text in ("1-3", "0+3", "0+2-3x0.5", "none"))
    run = lm.prepare(docs[:3], variants)
    assert run.engine == "shared"
    found = {}
    for batch in run.runner([Work(doc, variants) for doc in docs[:3]]):
        found |= {(answer.variant, answer.document.doc_id): answer.responses for answer in batch}
    for variant in variants:
        with lm.layers.keep(variant):
            for doc in docs[:3]:
                assert found[variant, doc.doc_id] == tuple(
                    lm.harness_answers("generate_until", list(doc.requests), True)
                )


def test_adapters_in_eight_bits(bases, tmp_path):
    """torch has neither isfinite nor products for them."""
    dtype = torch.float8_e4m3fn
    adapter = change_file(make_adapter(bases["untied"], tmp_path / "adapter"), lambda _, tensor: tensor.to(dtype))
    check_every_boundary(bases["untied"], adapter, tmp_path, engines=("auto",))
    broken = shutil.copytree(adapter, tmp_path / "broken")
    change_file(
        broken, lambda name, t: (t.float() * float("nan")).to(dtype) if "layers.1.mlp.up_proj.lora_B" in name else t
    )
    with pytest.raises(AdapterError, match="1 of 56 tensors hold NaN"):
        ours(bases["untied"], broken)


def with_added_tokens(base, folder, **lora):
    """As TRL, Unsloth and LLaMA-Factory leave it: two tokens more, the tokenizer beside the adapter."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(2)
    model.resize_token_embeddings(len(tokenizer))
    config = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, task_type="CAUSAL_LM", **Q, **lora)
    peft.get_peft_model(model, config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    changed = ("trainable_tokens_delta", *(f".{name}.weight" for name in lora.get("modules_to_save", ())))
    return change_file(
        folder, lambda name, t: t + 0.2 * torch.randn(t.shape) if any(one in name for one in changed) else t
    )


ADDED = {
    "PEFT's own embedding": {},
    "trained tokens": {"trainable_token_indices": [291, 292]},
}


@pytest.mark.parametrize("kind", ADDED)
def test_adapters_with_added_tokens(kind, bases, tmp_path):
    """Were refused: the model that they are tried on before loading had the base model's tokens only."""
    size = len(transformers.AutoTokenizer.from_pretrained(bases["untied"]))
    lora = {key: [size, size + 1] if key.startswith("train") else value for key, value in ADDED[kind].items()}
    adapter = with_added_tokens(bases["untied"], tmp_path / "adapter", **lora)
    check_every_boundary(bases["untied"], adapter, tmp_path, tokenizer=str(adapter))


def test_added_tokens_on_a_tied_model(bases, tmp_path):
    adapter = with_added_tokens(bases["tied"], tmp_path / "adapter", modules_to_save=["embed_tokens"])
    check_every_boundary(bases["tied"], adapter, tmp_path, tokenizer=str(adapter))


def test_without_the_adapters_tokenizer_its_embedding_does_not_fit(bases, tmp_path):
    adapter = with_added_tokens(bases["untied"], tmp_path / "adapter", modules_to_save=["embed_tokens", "lm_head"])
    with pytest.raises(AdapterError, match=r"has an embedding of \d+ tokens, and that of .*tokenizer=.*/adapter\."):
        ours(bases["untied"], adapter)


def test_lora_on_replicated_layers_is_not_merged(bases, tmp_path):
    """Was folded into the one weight that several layers share: 14 of 14 answers were others."""
    adapter = make_adapter(bases["untied"], tmp_path / "adapter", **Q, layer_replication=[[0, 3], [1, 4]])
    with pytest.raises(AdapterError, match="several layers into the one weight that they share"):
        ours(bases["untied"], adapter, merge=True)


def test_activated_lora_takes_the_plain_pass_and_is_not_merged(bases, tmp_path, caplog):
    adapter = make_adapter(bases["untied"], tmp_path / "adapter", **Q, alora_invocation_tokens=INVOCATION)
    tokenizer = transformers.AutoTokenizer.from_pretrained(bases["untied"])
    invoke = tokenizer.decode(INVOCATION)
    assert tokenizer.encode(f"{invoke} and", add_special_tokens=False)[:2] == INVOCATION
    docs = documents()
    for doc in docs[1:3] + docs[4:]:
        request = doc.requests[0]
        request.arguments = (f"{request.args[0]}{invoke} and", *request.args[1:])
    lm = ours(bases["untied"], adapter)
    with caplog.at_level(logging.WARNING, logger="lm_eval_lora_drop"):
        assert lm.prepare(docs[:3], (Variant.full(LAYERS),)).engine == "plain"
    assert "activated LoRA" in caplog.text
    expected = harness(bases["untied"], edited(adapter, tmp_path / "edited", 2), docs)
    assert expected != harness(bases["untied"], None, docs)
    assert_same(answers(lm, docs, (2,), "plain")[2], expected)
    with pytest.raises(AdapterError, match="merge=true cannot be done: .*activated LoRA"):
        ours(bases["untied"], adapter, merge=True)


def test_kasa_is_evaluated_whole(bases, tmp_path):
    adapter = make_adapter(bases["untied"], tmp_path / "adapter", **Q, kasa_config=KasaConfig())
    docs = documents()
    assert_same(
        answers(ours(bases["untied"], adapter), docs, (LAYERS,), "auto")[LAYERS],
        harness(bases["untied"], adapter, docs),
    )
    with pytest.raises(AdapterError, match="made with KaSA.*boundary=full"):
        ours(bases["untied"], adapter, boundary=2)


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {**Q, "modules_to_save": ["lm_head"]},
        {**Q, "trainable_token_indices": [3, 5]},
        {**Q, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ],
    ids=["LoRA on the head", "trained head", "trained tokens", "ensure_weight_tying"],
)
def test_where_the_harness_fails_on_a_tied_model_one_line_says_so(lora, bases, tmp_path):
    adapter = make_adapter(bases["tied"], tmp_path / "adapter", **lora)
    with pytest.raises((KeyError, AttributeError)):
        harness(bases["tied"], adapter, documents())
    with pytest.raises(
        AdapterError, match="share one weight .*--model hf fails too. Save the base model with its head"
    ):
        ours(bases["tied"], adapter)
    handed_over = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(bases["tied"]), str(adapter)
    )
    with pytest.raises(AdapterError, match="--model hf fails too"):
        LoraDropLM(pretrained=handed_over, boundary="full")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("The", "q" * 300), "a continuation has 300 tokens, and the model takes max_length=256"),
        (("  ", "x"), "the context '  ' has no tokens besides white space"),
        (("a", ""), "the continuation '' has no tokens"),
        (("", ""), "the continuation '' has no tokens"),
    ],
)
def test_what_the_harness_cannot_score_is_said_in_words(args, message, bases, tmp_path):
    """It ends in an assertion without a message, and so did the sweep and the evaluated split."""
    adapter = make_adapter(bases["untied"], tmp_path / "adapter", **Q)
    request = Instance("loglikelihood", {}, args, 0, metadata=("a_task", 5, 1))
    document = Document(5, {}, (request,), "5")
    with pytest.raises((AssertionError, IndexError)):
        harness(bases["untied"], adapter, [document])
    lm = ours(bases["untied"], adapter)
    with pytest.raises(
        ArgumentError, match=f"document 5 of a_task cannot be scored, with --model hf either: {message}"
    ):
        lm.loglikelihood([request], disable_tqdm=True)
    variants = (Variant.full(LAYERS), Variant.base(LAYERS))
    with pytest.raises(ArgumentError, match=message):
        list(lm.prepare([document], variants).runner([Work(document, variants)]))


@pytest.mark.parametrize("args", [("The question", " "), ("", "\n"), ("The", "q" * 250)])
def test_what_it_can_score_stays_shared(args, bases, tmp_path):
    """White space as the whole continuation, and one that leaves no room for its context."""
    adapter = make_adapter(bases["untied"], tmp_path / "adapter", **Q)
    documents = [Document(0, {}, (Instance("loglikelihood", {}, args, 0),), "0")]
    lm, variants = ours(bases["untied"], adapter), (Variant.full(LAYERS),)
    run = lm.prepare(documents, variants)
    assert run.engine == "shared"
    found = [answer.responses for batch in run.runner([Work(documents[0], variants)]) for answer in batch]
    assert found[0][0][0] == pytest.approx(harness(bases["untied"], adapter, documents)[0][0], rel=1e-5)


# Models that are handed over.


def load(base, adapter=None, **lora):
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    if adapter is not None:
        return peft.PeftModel.from_pretrained(model, str(adapter))
    torch.manual_seed(1)
    return peft.get_peft_model(model, peft.LoraConfig(r=4, task_type="CAUSAL_LM", **Q, **lora))


def state(model):
    """All that a run must not change: values, what is tied to what, modes, gradients, hooks, what is active."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_backward_hooks")
    return {
        name: (
            module.training,
            {
                key: (id(p), p.requires_grad, p._version, p.device)
                for key, p in module._parameters.items()
                if p is not None
            },
            [dict(getattr(module, hook)) for hook in hooks],
            "forward" in module.__dict__,
            list(getattr(module, "active_adapters", ())) if hasattr(module, "_active_adapter") else None,
            getattr(module, "_disable_adapters", None),
            dict(module.scaling) if isinstance(getattr(module, "scaling", None), dict) else None,
        )
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("mode", ["training", "some of each"])
def test_a_model_that_was_handed_over_comes_back_as_it_was(mode, bases, tmp_path):
    """Its logits, its modes, its gradients: HFLM ties its weights again and sets it to evaluation for good."""
    adapter = trained(bases["tied"], tmp_path / "adapter", **Q, modules_to_save=["embed_tokens"])
    model = load(bases["tied"], adapter)
    model.train(mode == "training")
    if mode == "some of each":
        model.get_base_model().model.layers[1].train()
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        before, logits = state(model), model(ids).logits
    docs = documents()
    tokenizer = transformers.AutoTokenizer.from_pretrained(bases["tied"])
    lm = LoraDropLM(pretrained=model, tokenizer=tokenizer, batch_size=1, boundary=0)
    requests = [doc.requests[0] for doc in docs[:3]]
    expected = harness(bases["tied"], None, docs[:3])
    assert lm.generate_until(requests, disable_tqdm=True) == expected
    lm.get_model_info()
    assert state(model) == before
    with torch.no_grad():
        assert torch.equal(model(ids).logits, logits)
    whole = LoraDropLM(pretrained=model, tokenizer=tokenizer, batch_size=1, boundary="full")
    assert whole.generate_until(requests, disable_tqdm=True) == harness(bases["tied"], adapter, docs[:3])
    assert state(model) == before


@pytest.mark.parametrize(
    ("base", "lora", "message"),
    [
        ("llama", {"init_lora_weights": "pissa"}, "made with pissa"),
        ("llama", {"kasa_config": KasaConfig()}, "made with KaSA"),
        ("qwen2", {"bias": "lora_only"}, "bias=lora_only and brings 4 biases"),
    ],
)
def test_what_cannot_be_divided_is_refused_in_memory_as_from_a_folder(base, lora, message, tmp_path):
    """K = 0 of such a model is not its base model."""
    folder = make_base(tmp_path / "base", base)
    model = load(folder, **lora)
    before = state(model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for boundary in (0, "auto"):
        with pytest.raises(AdapterError, match=message):
            LoraDropLM(pretrained=model, tokenizer=tokenizer, boundary=boundary, sweep_dir=str(tmp_path / "sweeps"))
    assert state(model) == before
    LoraDropLM(pretrained=model, tokenizer=tokenizer, boundary="full")
