"""The logit lens against a calculation that shares no line with it, and against the model's own output."""

import math

import numpy as np
import pytest
import torch

from lm_eval_lora_drop.engine.probe import lens
from lm_eval_lora_drop.harness.model import EncodedReference
from lm_eval_lora_drop.variant import Variant
from testing.probe_models import CONFIGS, make

DOCUMENTS = [
    EncodedReference(tuple(range(5, 40)), (40, 41, 42, 43)),
    EncodedReference((7, 8, 9), (33, 10)),
    EncodedReference((200,) * 20, (33,)),
]
SETS = [Variant.below(4, 4), Variant.below(2, 4), Variant.of_layers({0, 3}, 4), Variant.below(0, 4)]


def by_hand(layers, document):
    """`(L, T, 4)` from `output_hidden_states`, norm and head picked by name, one token after the other."""
    model = layers.model.get_base_model()
    config = model.config
    decoder = model.get_decoder()
    norm = next(
        getattr(decoder, name)
        for name in ("norm", "final_layernorm", "final_layer_norm", "ln_f")
        if hasattr(decoder, name)
    )
    with torch.no_grad():
        states = model(torch.tensor([document.inputs]), output_hidden_states=True).hidden_states
        values = []
        for number in range(1, len(states)):
            # The last state that Transformers hands out has been through the norm already.
            state = states[number] if number == len(states) - 1 else norm(states[number])
            row = []
            for offset, token in enumerate(document.targets):
                position = len(document.inputs) - len(document.targets) + offset
                logits = model.get_output_embeddings()(state[:, position])[0].double().numpy()
                logits = logits / getattr(config, "logits_scaling", 1.0) * getattr(config, "logit_scale", 1.0)
                cap = getattr(config, "final_logit_softcapping", None)
                if cap:
                    logits = cap * np.tanh(logits / cap)
                weights = [math.exp(logit - logits.max()) for logit in logits]
                probabilities = [weight / sum(weights) for weight in weights]
                row.append(
                    (
                        probabilities[token],
                        max(probabilities),
                        sorted(logits, reverse=True).index(logits[token]) + 1,
                        -sum(p * math.log(p) for p in probabilities if p > 0),
                    )
                )
            values.append(row)
    return np.array(values)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_layer_equals_a_calculation_by_hand(architecture):
    layers = make(architecture)
    for kept in SETS:
        with layers.keep(kept):
            readings = lens.read_layers(layers, DOCUMENTS, 4)
            for reading, document in zip(readings, DOCUMENTS, strict=True):
                count = len(document.targets)
                np.testing.assert_allclose(reading[:, :count], by_hand(layers, document), rtol=0, atol=1e-5)
                assert np.isnan(reading[:, count:]).all()


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_last_layer_is_the_models_own_output_distribution(architecture):
    """In double precision, where the shape of a matrix product does not show after rounding: bit for bit."""
    layers = make(architecture, dtype=torch.float64)
    for kept in SETS:
        with layers.keep(kept):
            for document in DOCUMENTS:
                reading = lens.read_layers(layers, [document], 4)[0, -1]
                count = len(document.targets)
                with torch.no_grad():
                    logits = layers.model(torch.tensor([document.inputs])).logits[0, -count:].float()
                own = logits.softmax(-1)
                assert reading[:count, 0].tolist() == own[torch.arange(count), torch.tensor(document.targets)].tolist()
                assert reading[:count, 1].tolist() == own.amax(-1).tolist()


def test_the_curve_of_a_boundary_leaves_the_full_one_where_its_lora_ends():
    layers = make("llama")
    with layers.keep(Variant.below(4, 4)):
        full = lens.read_layers(layers, DOCUMENTS[:1], 4)
    with layers.keep(Variant.below(2, 4)):
        some = lens.read_layers(layers, DOCUMENTS[:1], 4)
    np.testing.assert_array_equal(full[:, :2], some[:, :2])
    assert (full[:, 2:, :, 0] != some[:, 2:, :, 0]).all()


def test_lora_on_the_head_reads_every_layer_and_is_dropped_with_the_last():
    layers = make("llama", target_modules=["q_proj", "lm_head"])
    with layers.keep(Variant.below(4, 4)):
        full = lens.read_layers(layers, DOCUMENTS[:1], 4)
    with layers.keep(Variant.below(3, 4)):
        np.testing.assert_allclose(
            lens.read_layers(layers, DOCUMENTS[:1], 4)[0], by_hand(layers, DOCUMENTS[0]), rtol=0, atol=1e-5
        )
        # The layers below are the same; only the head differs.
        assert (lens.read_layers(layers, DOCUMENTS[:1], 4)[:, 0, :, 0] != full[:, 0, :, 0]).all()


def test_a_batch_reads_as_its_documents_do_alone(monkeypatch):
    layers = make("mistral_sliding")
    together = lens.read_layers(layers, DOCUMENTS, 4)
    monkeypatch.setattr(lens, "_MOST_LOGITS", 1)
    np.testing.assert_allclose(lens.read_layers(layers, DOCUMENTS, 4), together, rtol=0, atol=1e-5)


def test_the_model_is_given_back_even_when_it_fails():
    layers = make("gpt2")
    ids = torch.tensor([DOCUMENTS[0].inputs])
    with torch.no_grad():
        before = layers.model(ids).logits
    lens.read_layers(layers, DOCUMENTS, 4)
    with pytest.raises(IndexError):
        lens.read_layers(layers, [EncodedReference((5, 100_000), (5,))], 4)
    with torch.no_grad():
        assert torch.equal(layers.model(ids).logits, before)
    assert not any(layer._forward_hooks for layer in layers.decoder_layers)
