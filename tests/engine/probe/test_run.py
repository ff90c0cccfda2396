"""The probe as a whole on a tiny model: curves under several sets, the record, what it leaves out."""

import json

import numpy as np
import pytest
import torch

from lm_eval_lora_drop.backends.hf import LoraDropLM
from lm_eval_lora_drop.engine.probe.run import probe, probe_boundary
from lm_eval_lora_drop.variant import Variant

PAIRS = [(f"the question {i} and the text {'of the other ' * (i % 5)}", f" answer {i} in the text") for i in range(20)]
SETS = [Variant.below(2, 4), Variant.of_layers({0, 3}, 4), Variant.below(0, 4)]


@pytest.fixture(scope="module")
def lm(tiny_base, tiny_adapter):
    return LoraDropLM(str(tiny_base), str(tiny_adapter), boundary="full", device="cpu", dtype="float32")


def test_the_last_layer_is_the_harness_loglikelihood_of_the_first_token(lm):
    """Prompt and reference are split, and the model asked, as the harness does."""
    result = probe(lm, lm.layers, PAIRS, SETS, tokens=1, progress=False)
    for curves in result.curves:
        expected = []
        with lm.layers.keep(curves.kept), torch.no_grad():
            for prompt, reference in PAIRS:
                context, continuation = lm._encode_pair(prompt, reference)
                expected.append(lm.model(torch.tensor([context])).logits[0, -1].softmax(0)[continuation[0]].item())
        assert abs(curves.over_tokens.mean[-1, 0] - np.mean(expected)) < 1e-6
        assert abs(curves.over_tokens.stderr[-1, 0] - np.std(expected, ddof=1) / np.sqrt(20)) < 1e-6


def test_the_record_holds_every_curve_the_full_one_first(lm):
    record = json.loads(json.dumps(probe(lm, lm.layers, PAIRS, SETS, progress=False).to_json(), allow_nan=False))
    assert [curve["name"] for curve in record["curves"]] == ["full", "K = 2", "0+3", "base"]
    assert [curve["layers"] for curve in record["curves"]] == ["0-3", "0-1", "0+3", "none"]
    full, half, _, base = record["curves"]
    assert np.shape(full["by_token"]["probability"]["mean"]) == (4, 4)
    assert full["documents_by_token"] == [20] * 4
    assert full["probability_less_full"]["over_tokens"]["mean"] == [0.0] * 4
    difference = np.array(half["probability_less_full"]["over_tokens"]["mean"])
    assert (difference[:2] == 0).all()
    assert (difference[2:] != 0).all()
    np.testing.assert_allclose(
        base["probability_less_full"]["over_tokens"]["mean"],
        np.subtract(base["over_tokens"]["probability"]["mean"], full["over_tokens"]["probability"]["mean"]),
        atol=1e-7,
    )
    assert all(1 <= rank <= 291 for rank in full["over_tokens"]["rank"]["mean"])


def test_it_repeats_itself_and_the_boundary_needs_the_full_adapter_only(lm):
    first = probe_boundary(lm, lm.layers, PAIRS, progress=False)
    assert len(first.curves) == 1
    assert first.to_json() == probe_boundary(lm, lm.layers, PAIRS, progress=False).to_json()
    both = probe(lm, lm.layers, PAIRS, SETS, progress=False).to_json()
    assert both["rise"] == first.to_json()["rise"]
    assert both["curves"][0] == first.to_json()["curves"][0]


def test_without_a_rise_the_whole_adapter_is_kept_with_a_warning(lm):
    """A random model knows nothing, so its curve is flat."""
    result = probe_boundary(lm, lm.layers, PAIRS, progress=False)
    assert result.rise.layer is None
    assert result.boundary == 4
    assert any("flat" in warning for warning in result.warnings)
    assert any("boundary=4" in warning for warning in result.warnings)
    assert "No rise point" in result.table()


def test_short_and_blank_references_are_counted(lm):
    pairs = [*PAIRS[:6], ("the text", "  "), ("the text", ""), ("the text", " a"), ("", " the answer"), (" ", "a b c")]
    result = probe(lm, lm.layers, pairs, tokens=4, progress=False)
    assert (result.documents, result.left_out) == (9, 2)
    counts = result.to_json()["curves"][0]["documents_by_token"]
    assert counts[0] == 9
    assert counts[3] < 9
    assert any("2 documents with an empty reference" in warning for warning in result.warnings)


def test_a_prompt_beyond_the_models_length_loses_its_beginning(lm):
    result = probe(lm, lm.layers, [("text " * 600, " answer"), ("text " * 601, " answer")], progress=False)
    assert result.documents == 2
