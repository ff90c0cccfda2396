"""Quantised base models on the shared pass against the plain one; skipped where the package is absent."""

import importlib.util
import statistics

import pytest
import torch
import transformers

from lm_eval_lora_drop.engine.check import check_shared
from lm_eval_lora_drop.engine.evaluated import why_left_to_harness
from lm_eval_lora_drop.engine.plain import plain_runner
from lm_eval_lora_drop.engine.session import Counters
from lm_eval_lora_drop.engine.shared import shared_runner, why_not_shared
from lm_eval_lora_drop.errors import AdapterError
from lm_eval_lora_drop.sweep.backend import Work
from lm_eval_lora_drop.variant import Variant
from testing import tiny
from tests.engine.test_shared import choosing, generating, load
from tests.engine.test_variants import answers

LAYERS = 3
FOUR = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
EIGHT = {"load_in_8bit": True}
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes (pip install bitsandbytes)"
)


@pytest.fixture(scope="module")
def load_in(tmp_path_factory):
    """A model with quantised weights, as a user has it: saved so, since Transformers 5 takes no load_in_4bit."""
    folder = tmp_path_factory.mktemp("quantised")
    # Blocks are of 64 weights, and the kernels for CPUs take whole blocks only.
    sizes = {**tiny.SIZES, "hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny.ARCHITECTURES, "llama", lambda n: transformers.LlamaConfig(**sizes, num_hidden_layers=n))
        base = tiny.make_base(folder / "base", num_layers=LAYERS)
    adapter = tiny.make_adapter(base, folder / "adapter")

    def build(bits):
        config = transformers.BitsAndBytesConfig(**bits) if isinstance(bits, dict) else bits
        saved = folder / "_".join(bits if isinstance(bits, dict) else ["torchao"])
        if not saved.exists():
            transformers.AutoModelForCausalLM.from_pretrained(
                base, quantization_config=config, dtype=torch.float32
            ).save_pretrained(saved)
            tiny.make_tokenizer().save_pretrained(saved)
        return load(saved, adapter)

    return build


def below():
    return tuple(Variant.below(k, LAYERS) for k in range(LAYERS, -1, -1))


def passes(lm, documents):
    """(plain, plain at another batch size, shared)."""
    work = [Work(document, below()) for document in documents]
    assert why_not_shared(lm, lm.layers, documents, below()) is None
    counters = Counters()
    plain = answers(plain_runner(lm, lm.layers), work)
    shared = answers(shared_runner(lm, lm.layers, None, counters), work)
    assert counters.fell_back is None
    lm.batch_size_per_gpu = 1
    return plain, answers(plain_runner(lm, lm.layers), work), shared


def differences_of_ends(plain):
    """How far the full adapter and the base model are apart."""
    full, base = (str(variant) for variant in (below()[0], below()[-1]))
    return [
        abs(a[0] - b[0])
        for (v, d), found in plain.items()
        if v == full
        for a, b in zip(found, plain[base, d], strict=True)
    ]


def differences(one, other):
    return [abs(a[0] - b[0]) for key in one for a, b in zip(one[key], other[key], strict=True)]


@pytest.mark.parametrize(("bits", "kind"), [(FOUR, "4bit"), (EIGHT, "8bit")], ids=["4 bit", "8 bit"])
def test_it_differs_no_more_than_the_plain_pass_from_itself(load_in, bits, kind):
    """Quantised kernels round anew for another shape of the batch (LLM.int8 finds its outlier columns over all of it):
    equality is not asked."""
    lm = load_in(bits)
    assert any(kind in type(module).__name__ for module in lm.model.modules())
    plain, again, shared = passes(lm, choosing())
    itself, between = differences(plain, again), differences(plain, shared)
    assert statistics.mean(between) <= 4 * statistics.mean(itself) + 1e-3
    # The variants are different models, or nothing would be proved.
    assert len({plain[str(variant), 1] for variant in below()}) == LAYERS + 1
    assert statistics.mean(between) < 0.1 * statistics.mean(differences_of_ends(plain))
    found = check_shared(
        lm,
        lm.layers,
        lambda rows, counters: shared_runner(lm, lm.layers, rows, counters),
        plain_runner(lm, lm.layers),
        choosing(),
        below(),
    )
    assert found.error is None
    assert found.loglikelihoods > 0


def test_the_evaluated_split_is_left_to_the_harness(load_in):
    lm = load_in(EIGHT)
    requests = [request for document in generating() for request in document.requests]
    assert "quantised" in why_left_to_harness(lm, requests)


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao (pip install torchao)")
def test_weights_that_are_tensors_of_their_own_kind_keep_their_own_product(load_in):
    """oneDNN knows nothing of torchao's tensors."""
    from torchao.quantization import Int8WeightOnlyConfig

    lm = load_in(transformers.TorchAoConfig(Int8WeightOnlyConfig()))
    assert any(type(parameter).__name__ == "Int8Tensor" for parameter in lm.model.parameters())
    plain, _, shared = passes(lm, choosing())
    assert max(differences(plain, shared)) < 1e-3


@pytest.mark.parametrize("bits", [FOUR, EIGHT], ids=["4 bit", "8 bit"])
def test_after_a_sweep_the_model_is_the_one_before_and_merging_is_refused(load_in, bits):
    lm = load_in(bits)
    inputs = lm.tokenizer("The model", return_tensors="pt")
    before = lm.model(**inputs).logits
    passes(lm, choosing()[:2])
    assert torch.equal(before, lm.model(**inputs).logits)
    with pytest.raises(AdapterError, match="quantised"), lm.layers.merge(below()[1]):
        pass
