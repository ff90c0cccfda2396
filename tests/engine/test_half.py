"""A base model in half precision, whose LoRA PEFT keeps in fp32: the shared pass rounds as the plain one does."""

import pytest
import torch

from lm_eval_lora_drop.engine import kernels
from lm_eval_lora_drop.engine.plain import plain_runner
from lm_eval_lora_drop.engine.shared import shared_runner
from lm_eval_lora_drop.sweep.backend import Work
from tests.engine.test_shared import answers, below, generating, load


def first_logits(lm, runner, work):
    """Of the token after the prompt, the last that the output layer computed."""
    seen = []
    hook = lm.model.get_output_embeddings().register_forward_hook(lambda module, given, out: seen.append(out[:, -1]))
    try:
        answers(runner, work)
    finally:
        hook.remove()
    return seen[-1]


@pytest.mark.parametrize(("dtype", "boundary"), [(torch.bfloat16, 4), (torch.float16, 2), (torch.bfloat16, 0)])
def test_one_prompt_has_the_same_logits_bit_for_bit(tiny_base, tiny_adapter, dtype, boundary):
    """Another order of summation in the LoRA's products would flip a rounding here and there, and answers with it."""
    lm = load(tiny_base, tiny_adapter, dtype=dtype)
    lora = [p for name, p in lm.model.named_parameters() if "lora_" in name]
    assert {p.dtype for p in lora} == {torch.float32}
    for document in generating(max_gen_toks=1):
        work = [Work(document, below(boundary))]
        plain = first_logits(lm, plain_runner(lm, lm.layers), work)
        assert plain.dtype == dtype
        assert torch.equal(first_logits(lm, shared_runner(lm, lm.layers), work), plain)


def test_kernels_are_chosen_for_models_that_are_in_fp32_altogether(tiny_base, tiny_adapter):
    lm = load(tiny_base, tiny_adapter)
    assert kernels.available(lm) == (
        torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
    assert not kernels.available(load(tiny_base, tiny_adapter, dtype=torch.bfloat16))
    next(p for name, p in lm.model.named_parameters() if "lora_" not in name).data = torch.zeros(2, dtype=torch.uint8)
    assert not kernels.available(lm)


def test_the_output_layer_is_handed_states_that_lie_one_after_the_other(tiny_base, tiny_adapter):
    """Of a strided batch torch makes a product, and in half precision a copy of the weights, for every row."""
    lm = load(tiny_base, tiny_adapter, dtype=torch.bfloat16)
    seen = []
    hook = lm.model.get_output_embeddings().register_forward_hook(
        lambda module, given, out: seen.append(given[0].is_contiguous())
    )
    answers(shared_runner(lm, lm.layers), [Work(document, below(0, 2, 4)) for document in generating()])
    assert len(seen) > 2
    assert all(seen)
    del seen[:]
    answers(plain_runner(lm, lm.layers), [Work(document, below(4)) for document in generating()])
    hook.remove()
    assert not all(seen)
