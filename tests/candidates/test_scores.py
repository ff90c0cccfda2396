"""Scores of layers: against their definitions, computed another way; and as candidates of a sweep."""

from functools import partial
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers

from benchmarks.matrix_cases import make_config
from lm_eval_lora_drop.adapter.files import open_adapter
from lm_eval_lora_drop.backends.hf import LoraDropLM
from lm_eval_lora_drop.commands.main import main
from lm_eval_lora_drop.engine.probe.scores import layer_scores, top_singular, update_norms
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.schema import from_config
from lm_eval_lora_drop.statistics.alignment import linear_cka
from lm_eval_lora_drop.sweep.candidates import best_layers, make_candidates
from lm_eval_lora_drop.variant import AdapterShape, Variant
from testing import tiny
from testing.tiny import make_adapter
from tests.candidates.toys import evaluate

DEMO_ADAPTER = Path(__file__).parents[2] / "demo" / "adapter"
PAIRS = [(f"The question {i} is", f" the answer {i} in the text") for i in range(5)]


def load(base, adapter, **model_args):
    given = {"boundary": "full", "device": "cpu", "dtype": "float32", "batch_size": 4, **model_args}
    return LoraDropLM(str(base), str(adapter), **given)


@pytest.fixture(scope="module")
def uneven(tiny_base, tmp_path_factory):
    """LoRA in two layers only, with ranks, scalings and targets that differ."""
    folder = tmp_path_factory.mktemp("uneven") / "adapter"
    return make_adapter(
        tiny_base,
        folder,
        target_modules=["q_proj", "down_proj"],
        layers_to_transform=[1, 3],
        rank_pattern={"layers.1.self_attn.q_proj": 2},
        alpha_pattern={"layers.3.mlp.down_proj": 32},
        use_rslora=True,
    )


@pytest.mark.parametrize("which", ["tiny_adapter", "uneven", "SmolLM2"])
def test_the_scores_of_the_update_are_those_of_the_weights_peft_would_merge(which, request):
    base, adapter = request.getfixturevalue("tiny_base"), DEMO_ADAPTER
    if which == "SmolLM2":
        base = request.getfixturevalue("smollm2")
    else:
        adapter = request.getfixturevalue(which)
    lm = load(base, adapter)
    norms, largest = update_norms(open_adapter(str(adapter)), lm.layers.num_layers), []
    found = top_singular(open_adapter(str(adapter)), lm.layers.num_layers)
    layers = range(4) if which != "SmolLM2" else (0, 14, 29)
    for layer in layers:
        deltas = [one.get_delta_weight("default").detach().double().numpy() for one in lm.layers.modules[layer]]
        values = [np.linalg.svd(delta, compute_uv=False) ** 2 for delta in deltas]
        largest.append(sum(one[0] for one in values) / sum(one.sum() for one in values) if values else 0.0)
        assert norms[layer] == pytest.approx(sum(np.square(one).sum() for one in deltas) ** 0.5, rel=1e-5)
    assert found[list(layers)] == pytest.approx(largest, rel=1e-5)
    # One direction of the rank is between its share and everything.
    assert all(1 / lm.shape.rank < value < 1 for value in found if value)
    if which == "uneven":
        assert found[0] == found[2] == norms[0] == norms[2] == 0 < min(norms[1], norms[3])


def test_an_update_that_was_never_trained_has_no_direction(tiny_base, tmp_path):
    fresh = make_adapter(tiny_base, tmp_path / "fresh", init_lora_weights=True)
    assert top_singular(open_adapter(str(fresh)), 4).tolist() == [0, 0, 0, 0]


def test_a_mixture_of_experts_has_all_scores(tmp_path, monkeypatch):
    """LoRA on what gives back several tensors, expert indices among them."""
    monkeypatch.setattr(tiny, "ARCHITECTURES", {"mixtral": lambda _: make_config("mixtral")})
    base = tiny.make_base(tmp_path / "base", "mixtral")
    lm = load(base, tiny.make_adapter(base, tmp_path / "adapter", target_modules="all-linear"))
    found = layer_scores(lm, lm.layers, PAIRS)
    assert set(found) == {"lora_output", "cka_adapted", "probe_rise"}
    assert all(np.isfinite(one).all() and (one[:2] != 0).all() for one in found.values())


def test_cka_is_its_definition_in_the_space_of_features():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(40, 7)), rng.normal(size=(40, 5))
    x, y = one - one.mean(axis=0), other - other.mean(axis=0)
    norm = np.linalg.norm
    assert linear_cka(one, other) == pytest.approx(norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y)))
    rotation = np.linalg.qr(rng.normal(size=(7, 7)))[0]
    assert linear_cka(one, 3 * one @ rotation + 2) == pytest.approx(1)
    assert np.isnan(linear_cka(one, np.ones((40, 3))))


@pytest.fixture(params=["tiny", "SmolLM2"])
def base_and_adapter(request):
    """The tiny model with an uneven adapter, and the demo's."""
    if request.param == "tiny":
        return request.getfixturevalue("tiny_base"), request.getfixturevalue("uneven")
    return request.getfixturevalue("smollm2"), DEMO_ADAPTER


def by_plain_peft(base, adapter):
    """`lora_output`, `cka_adapted` and `probe_rise` from what hooks on plain PEFT's modules see."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, str(adapter)).eval()
    decoder = model.base_model.model.model
    squares, states = np.zeros(len(decoder.layers)), []

    def see_input(module, inputs, layer):
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        squares[layer] += float((module.scaling["default"] * inputs[0] @ a.T @ b.T).double().square().sum())

    def see_states(_, __, output):
        states.append((output[0] if isinstance(output, tuple) else output)[0])

    for layer, one in enumerate(decoder.layers):
        one.register_forward_hook(see_states)
        for module in one.modules():
            if isinstance(module, peft.tuners.lora.LoraLayer):
                module.register_forward_pre_hook(partial(see_input, layer=layer))
    adapted, plain, curves = [], [], []
    for prompt, reference in PAIRS:
        context = tokenizer(prompt).input_ids
        both = tokenizer(prompt + reference).input_ids[: len(context) + 4]
        ids, targets = torch.tensor([both[:-1]]), both[len(context) :]
        with torch.no_grad():
            model(input_ids=ids)
            found = torch.stack(states)[:, -len(targets) :]
            read = model.get_output_embeddings()(decoder.norm(found)).softmax(-1)
            curves.append(read[:, range(len(targets)), targets].mean(-1).double().numpy())
            states.clear()
            before = squares.copy()
            with model.disable_adapter():
                model(input_ids=ids)
            squares[:] = before
        adapted.append(found.double().numpy())
        plain.append(torch.stack(states)[:, -len(targets) :].double().numpy())
        states.clear()
    distances = []
    for one, other in zip(np.concatenate(plain, axis=1), np.concatenate(adapted, axis=1), strict=True):
        x, y = one - one.mean(axis=0), other - other.mean(axis=0)
        norm = np.linalg.norm
        distances.append(1 - norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y)))
    return {
        "lora_output": squares / squares.sum(),
        "cka_adapted": distances,
        "probe_rise": np.diff(np.mean(curves, axis=0), prepend=0),
    }


def test_the_scores_on_data_are_what_plain_peft_says(base_and_adapter):
    base, adapter = base_and_adapter
    lm = load(base, adapter)
    scores = layer_scores(lm, lm.layers, PAIRS, lm._adapter_files)
    assert set(scores) == {"update_norm", "top_singular", "lora_output", "cka_adapted", "probe_rise"}
    for name, expected in by_plain_peft(base, adapter).items():
        assert scores[name] == pytest.approx(expected, rel=1e-3, abs=1e-6), name
        assert np.ptp(expected) > 1e-3, name
    if adapter != DEMO_ADAPTER:
        assert scores["lora_output"][0] == scores["lora_output"][2] == 0
        # Below the first layer with LoRA base and adapted states are one; behind it they differ.
        assert scores["cka_adapted"][0] == pytest.approx(0, abs=1e-9)
        assert scores["cka_adapted"][1] > 1e-4
    with pytest.raises(ArgumentError, match="at least two documents"):
        layer_scores(lm, lm.layers, PAIRS[:1])


def test_the_best_layers_by_a_score():
    candidate_set = make_candidates(["scores"], AdapterShape(6))
    found = best_layers({"a": [6, 5, 4, 3, 2, 1], "b": [0, 1, 0, 1, float("nan"), 2]}, candidate_set)
    names = {str(variant) for variant in found.variants}
    assert {"none", "0", "0-1", "0-2", "0-3", "0-4", "0-5"} <= names
    assert {"5", "1+5", "1+3+5", "0-1+3+5", "0-3+5"} <= names
    assert len(names) == len(found.variants)
    assert found.full == Variant.full(6)
    assert not found.ordered


def test_a_sweep_over_the_best_layers(tiny_base, tiny_adapter, tmp_path):
    lm = load(
        tiny_base,
        tiny_adapter,
        boundary="auto",
        sweep_candidates="scores",
        sweep_limit=4,
        sweep_dir=str(tmp_path / "s"),
    )
    record = from_config(evaluate(lm)["config"], "here").tasks["toy"]
    order = np.argsort(-update_norms(open_adapter(str(tiny_adapter)), 4), kind="stable")
    swept = {row.variant for row in record.sweep.candidates}
    assert {str(Variant.of_layers(order[:k].tolist(), 4)) for k in range(5)} <= swept
    pairs = [(f"validation question {i}?", f" answer {i}") for i in record.validation.doc_ids]
    for values in lm.layer_scores(pairs).values():
        order = sorted(range(4), key=lambda layer: -values[layer])
        assert {str(Variant.of_layers(order[:k], 4)) for k in range(5)} <= swept
    assert record.sweep.candidate_set == "scores"


def test_the_command_prints_draws_and_needs_no_model_without_a_task(tiny_adapter, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(LoraDropLM, "__init__", lambda *_, **__: pytest.fail("a model is loaded"))
    assert main(["layers", "--peft", str(tiny_adapter), "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out.splitlines()
    norms = update_norms(open_adapter(str(tiny_adapter)), 4)
    assert said[0].split() == ["layer", "update_norm", "rank", "top_singular", "rank"]
    assert [line.split()[1] for line in said[2:6]] == [f"{value:.4g}" for value in norms]
    assert sorted(int(line.split()[2]) for line in said[2:6]) == [1, 2, 3, 4]
    assert (tmp_path / "out" / "layers.png").stat().st_size > 5000
    assert (tmp_path / "out" / "layers.json").is_file()
