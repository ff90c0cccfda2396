"""Any candidates on the shared pass, not boundaries alone: the same answers as one variant at a time."""

import numpy as np
import pytest
from lm_eval.api.instance import Instance

from lm_eval_lora_drop.engine.plain import plain_runner
from lm_eval_lora_drop.engine.session import Counters
from lm_eval_lora_drop.engine.shared import shared_runner, why_not_shared
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.sweep.backend import Work
from lm_eval_lora_drop.variant import Variant
from testing.tiny import ARCHITECTURES, make_adapter, make_base
from tests.engine.test_shared import EXAMPLES, choosing, documents, generating, load, same_numbers

LAYERS = 4
CANDIDATES = {
    "windows": ["0-1", "1-2", "1-3", "2-3", "3", "none"],
    "leave one out": ["0-3", "1-3", "0+2-3", "0-1+3", "0-2"],
    "strengths": ["0-3x0.25", "0-3x0.5", "0-3", "0-3x1.5", "0-1+2-3x0.5"],
    "modules": ["0-3.attention", "0-3.mlp", "0-1.attention+2-3", "0-3.attention+0-3x0.5.mlp"],
    "ranks": ["0-3r1", "0-3r2", "0-1+2-3r1", "0-3r9"],
    "mixed": ["none", "0-1", "0-3", "1-3", "0-3x0.5", "0-3.mlp", "0-1r2", "0+3x1.25r1.attention"],
}


def answers(runner, work):
    found = {}
    for batch in runner(work):
        for answer in batch:
            key = (str(answer.variant), answer.document.doc_id)
            assert key not in found
            found[key] = answer.responses
    return found


def both(lm, docs, variants, batch_size=None):
    work = [Work(document, tuple(variants)) for document in docs]
    assert why_not_shared(lm, lm.layers, docs, variants) is None
    counters = Counters()
    plain = answers(plain_runner(lm, lm.layers), work)
    shared = answers(shared_runner(lm, lm.layers, batch_size, counters), work)
    assert counters.fell_back is None
    assert plain.keys() == shared.keys() == {(str(v), d.doc_id) for v in variants for d in docs}
    return plain, shared


def parsed(texts):
    return [Variant.parse(text, LAYERS) for text in texts]


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES.keys() - {"gemma", "mistral"}))
def lm(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    base = make_base(folder / "base", request.param)
    return load(base, make_adapter(base, folder / "adapter"))


@pytest.fixture(scope="module")
def llama(tiny_base, tiny_adapter):
    return load(tiny_base, tiny_adapter)


def test_mixed_families_are_equal_on_every_architecture(lm):
    """With few-shot examples, which are read once for all documents, and without. Gemma 1 and Mistral without a window
    hand nothing from layer to layer that Llama does not."""
    variants = parsed(CANDIDATES["mixed"])
    plain, shared = both(lm, generating(EXAMPLES), variants)
    assert shared == plain
    assert len({shared[str(v), 2] for v in variants}) > 3
    # Answers are of different lengths, or equality would prove little.
    assert len({len(text) for responses in shared.values() for text in responses}) > 2
    plain, shared = both(lm, choosing()[:3], variants)
    same_numbers(plain, shared)
    assert len({plain[str(v), 0] for v in variants}) == len(variants)


@pytest.mark.parametrize("family", [name for name in CANDIDATES if name != "mixed"])
def test_every_family(llama, family):
    variants = parsed(CANDIDATES[family])
    plain, shared = both(llama, generating(EXAMPLES), variants, batch_size=7)
    assert shared == plain
    same_numbers(*both(llama, choosing(EXAMPLES), variants))


@pytest.mark.parametrize(
    "lora",
    [
        {"use_dora": True},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1, 3]},
        {"use_rslora": True},
    ],
    ids=str,
)
def test_kinds_of_adapters(tiny_base, tmp_path, lora):
    lm = load(tiny_base, make_adapter(tiny_base, tmp_path / "adapter", **lora))
    variants = parsed(["none", "0-1", "1-3", "0-3", "0-3x0.5", "0-3r1", "2-3.attention"])
    plain, shared = both(lm, generating(), variants)
    assert shared == plain
    same_numbers(*both(lm, choosing(), variants))


def test_two_adapters_of_different_rank_and_targets_in_one_batch(tiny_base, tiny_adapter, tmp_path):
    lm = load(tiny_base, tiny_adapter)
    other = make_adapter(tiny_base, tmp_path / "other", seed=7, r=2, target_modules=["q_proj", "down_proj"])
    lm.model.load_adapter(str(other), adapter_name="other")
    lm.layers = type(lm.layers).of(lm.model)
    variants = parsed(["none", "0-1", "0-3", "other@0-1", "other@0-3", "other@1-3x0.5", "default@0-3"])
    plain, shared = both(lm, generating(), variants)
    assert shared == plain
    same_numbers(*both(lm, choosing(), variants))
    assert shared["default@0-3", 2] == shared["0-3", 2] != shared["other@0-3", 2]
    # Alone, the other adapter says the same.
    alone = load(tiny_base, other)
    assert answers(plain_runner(alone, alone.layers), [Work(generating()[2], (Variant.full(LAYERS),))]) == {
        ("0-3", 2): shared["other@0-3", 2]
    }


def test_candidates_that_agree_on_the_lower_layers_share_them(llama):
    """Layer passes of one prompt are the nodes of the trie, counted here by brute force over prefixes."""
    variants = parsed([text for family in CANDIDATES.values() for text in family])
    variants = list(dict.fromkeys(variants))
    counters = Counters()
    work = [Work(documents("loglikelihood", [[("The question", " s")]])[0], tuple(variants))]
    answers(shared_runner(llama, llama.layers, counters=counters), work)
    prefixes = {variant.layers[: layer + 1] for variant in variants for layer in range(LAYERS)}
    assert counters.layer_rows == len(prefixes) < LAYERS * len(variants)


def test_what_no_pass_can_run_is_refused(llama):
    for text, message in (("0-3.experts", "attention.*q_proj.*got experts"), ("seed2@0-3", "default.*got 'seed2'")):
        with pytest.raises(ArgumentError, match=message):
            why_not_shared(llama, llama.layers, [], parsed([text]))


@pytest.mark.parametrize("seed", range(2))
def test_random_candidates(llama, seed):
    rng = np.random.default_rng(seed)
    pieces = ["", "x0.5", "x1.5", "r1", ".attention", "x0.5.mlp"]
    variants = set()
    while len(variants) < 6:
        kept = [f"{layer}{rng.choice(pieces)}" for layer in range(LAYERS) if rng.random() < 0.7]
        variants.add(Variant.parse("+".join(kept) or "none", LAYERS))
    plain, shared = both(llama, generating(), sorted(variants, key=str), int(rng.integers(1, 20)))
    assert shared == plain


def test_requests_of_one_document_may_have_different_arguments(llama):
    settings = [
        {"until": ["q"], "max_gen_toks": 9},
        {"until": ["a"], "max_gen_toks": 4},
        {"until": [], "max_gen_toks": 6},
    ]
    docs = documents("generate_until", [[("The question is", s) for s in settings], [("a", settings[1])]])
    assert isinstance(docs[0].requests[0], Instance)
    plain, shared = both(llama, docs, parsed(["none", "0-1", "0-3"]))
    assert shared == plain
