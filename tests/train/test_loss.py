"""The loss on answers only, against the plain loss with labels: the same number, the same gradients, fewer logits."""

import peft
import pytest
import torch
import transformers

from lm_eval_lora_drop.train.tokens import IGNORED
from lm_eval_lora_drop.train.trainer import answer_loss, collate
from testing.tiny import ARCHITECTURES, SIZES

CONFIGS = {
    "llama": ARCHITECTURES["llama"],
    "qwen2": ARCHITECTURES["qwen2"],
    "gpt2": ARCHITECTURES["gpt2"],  # positions are learned: padding must not move them
    "gemma2": ARCHITECTURES["gemma2"],  # a soft cap behind the head
    "gemma3": lambda n: transformers.Gemma3TextConfig(
        **SIZES, num_hidden_layers=n, head_dim=8, sliding_window=16, query_pre_attn_scalar=8
    ),
    "cohere": lambda n: transformers.CohereConfig(**SIZES, num_hidden_layers=n, logit_scale=0.3),
    "granite": lambda n: transformers.GraniteConfig(**SIZES, num_hidden_layers=n, logits_scaling=3.0),
}


class FlattensTokens(transformers.LlamaForCausalLM):
    """A head that is given tokens, not rows of tokens, as some models in the wild do."""

    def forward(self, input_ids, attention_mask=None, labels=None, **_):
        states = self.model(input_ids, attention_mask=attention_mask).last_hidden_state
        logits = self.lm_head(states.flatten(0, 1)).view(*input_ids.shape, -1)
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size)
        return transformers.modeling_outputs.CausalLMOutput(loss=loss, logits=logits)


def make(name, targets="all-linear"):
    torch.manual_seed(0)
    if name == "flattens":
        model = FlattensTokens(ARCHITECTURES["llama"](3))
    else:
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](3))
    config = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config).eval()


@pytest.fixture
def batch():
    """Three documents of 31, 12 and 20 tokens; answers of 1, 9 and 5 tokens, one of them in two pieces."""
    torch.manual_seed(1)
    answers = [{30}, set(range(3, 12)), {4, 5, 17, 18, 19}]
    rows = []
    for length, answer in zip((31, 12, 20), answers, strict=True):
        ids = torch.randint(3, 290, (length,)).tolist()
        rows.append({"input_ids": ids, "labels": [one if i in answer else IGNORED for i, one in enumerate(ids)]})
    return collate(rows)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.requires_grad}


@pytest.mark.parametrize("name", [*CONFIGS, "flattens"])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head"]])
def test_loss_and_gradients_are_those_of_plain_labels(name, targets, batch):
    if targets != "all-linear" and name in ("gpt2", "flattens"):
        pytest.skip("one model with LoRA on its head is enough of each kind")
    model = make(name, targets)
    labels = batch.pop("labels")
    found = answer_loss(model, model.get_output_embeddings(), batch, labels)
    plain = model(**batch, labels=labels).loss * (labels >= 0).sum()
    assert found.item() == pytest.approx(plain.item(), rel=1e-5)
    ours, theirs = gradients(model, found), gradients(model, plain)
    assert any(one.abs().max() > 0 for one in theirs.values())
    for key, expected in theirs.items():
        torch.testing.assert_close(ours[key], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()) + 1e-8)


@pytest.mark.parametrize(("name", "computed"), [("llama", 15), ("gemma3", 15), ("gpt2", 15), ("flattens", 93)])
def test_the_head_computes_the_logits_of_answers_only(name, computed, batch):
    """15 answer tokens among 3 x 31 positions; where the head is not called by rows of tokens, all of them."""
    model = make(name)
    seen = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda _module, _given, out: seen.append(out.numel() // out.shape[-1]))
    labels = batch.pop("labels")
    answer_loss(model, head, batch, labels)
    assert seen == [computed]
    # Nothing stays behind: the next caller gets all logits.
    assert model(**batch).logits.shape[:2] == batch["input_ids"].shape


def test_a_model_that_names_no_head(batch):
    model = make("llama")
    labels = batch.pop("labels")
    with_head = answer_loss(model, model.get_output_embeddings(), batch, labels)
    assert answer_loss(model, None, batch, labels).item() == pytest.approx(with_head.item(), rel=1e-6)
