"""The shared pass against the plain one: the same answers, token by token, in fp32, for adapters with B != 0."""

import dataclasses

import pytest
import torch
from lm_eval.api.instance import Instance
from torch import nn

from lm_eval_lora_drop.engine import decode
from lm_eval_lora_drop.engine.evaluated import decode_requests
from lm_eval_lora_drop.engine.plain import plain_runner
from lm_eval_lora_drop.engine.session import Counters
from lm_eval_lora_drop.engine.shared import shared_runner, why_not_shared
from lm_eval_lora_drop.engine.states import prefix
from lm_eval_lora_drop.harness.documents import Document
from lm_eval_lora_drop.sweep.backend import Work
from lm_eval_lora_drop.variant import Variant
from testing.tiny import TinyLM, make_adapter

PROMPTS = [
    "The question is",
    "a",
    "To be, or not to be: that is the question, and the answer is in the text of the other one.",
    "1 + 1 =",
    "\n\n\n",
]

EXAMPLES = "The answer is in the text: that is the question.\n\nThe answer is no, or to be of one in the other.\n\n"


def load(base, adapter, **model_args):
    """Five rows a batch, so that the plain pass takes all of `PROMPTS` at once."""
    return TinyLM(base, adapter, **{"batch_size": 5, **model_args})


def below(*boundaries, num_layers=4):
    """The variants of these boundaries."""
    return tuple(Variant.below(boundary, num_layers) for boundary in boundaries)


def documents(request_type, arguments):
    return [
        Document(i, {}, tuple(Instance(request_type, {}, args, j) for j, args in enumerate(group)), str(i))
        for i, group in enumerate(arguments)
    ]


def generating(before="", **kwargs):
    settings = {"until": ["q", "\n\n"], "max_gen_toks": 14, "do_sample": False, **kwargs}
    return documents("generate_until", [[(before + prompt, settings)] for prompt in PROMPTS])


def choosing(before=""):
    choices = [" yes", " no", "s", " in the other text"]
    # The harness itself refuses a context of nothing but white space.
    prompts = [prompt for prompt in PROMPTS if prompt.strip()] + [""]
    return documents("loglikelihood", [[(before + prompt, choice) for choice in choices] for prompt in prompts])


def answers(runner, work):
    found = {}
    for batch in runner(work):
        for answer in batch:
            key = (answer.variant.boundary, answer.document.doc_id)
            assert key not in found
            found[key] = answer.responses
    return found


def both(lm, docs, boundaries, batch_size=None):
    work = [Work(document, below(*boundaries)) for document in docs]
    plain = answers(plain_runner(lm, lm.layers), work)
    shared = answers(shared_runner(lm, lm.layers, batch_size), work)
    assert plain.keys() == shared.keys() == {(k, d.doc_id) for k in boundaries for d in docs}
    return plain, shared


def same_numbers(plain, shared):
    for key, responses in plain.items():
        for mine, theirs in zip(shared[key], responses, strict=True):
            if isinstance(theirs, tuple):
                assert mine[1] == theirs[1]
                mine, theirs = mine[0], theirs[0]
            assert mine == pytest.approx(theirs, abs=1e-5, rel=1e-6)


@pytest.fixture(autouse=True)
def undefined_memory_is_nan():
    """Whoever reads memory that nobody wrote gets NaN, not what happens to lie there."""
    before = torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="module")
def llama(tiny_base, tiny_adapter):
    return load(tiny_base, tiny_adapter)


def test_rolling_loglikelihoods_are_equal(llama):
    texts = [*PROMPTS, " ".join(["the answer and the question"] * 60)]
    docs = documents("loglikelihood_rolling", [[(text,)] for text in texts])
    same_numbers(*both(llama, docs, range(5)))


@pytest.mark.parametrize("boundaries", [[4], [0], [1, 3], [0, 4]], ids=str)
def test_any_set_of_boundaries(llama, boundaries):
    plain, shared = both(llama, generating(), boundaries)
    assert shared == plain
    same_numbers(*both(llama, choosing(), boundaries))


@pytest.mark.parametrize(("make", "share"), [(generating, 0.8), (choosing, 0.7)])
def test_what_all_prompts_begin_with_is_read_once(llama, monkeypatch, make, share):
    tokens = []
    work = [Work(document, below(*range(5))) for document in make(EXAMPLES)]
    for least in (prefix.LEAST_TOKENS, 10**9):
        monkeypatch.setattr(prefix, "LEAST_TOKENS", least)
        counters = Counters()
        answers(shared_runner(llama, llama.layers, counters=counters), work)
        tokens.append(counters.layer_tokens)
    assert tokens[0] < share * tokens[1]


@pytest.fixture(scope="module")
def uneven(llama):
    """Documents that still lack different boundaries, as after a kill, and what the plain pass answers."""
    found = {}
    for before in ("", EXAMPLES):
        boundaries = [(4, 2), (3,), (4, 2), (4, 3, 2, 1, 0), (0, 1, 2)]
        work = [Work(d, below(*b)) for d, b in zip(generating(before), boundaries, strict=True)]
        found[before] = work, answers(plain_runner(llama, llama.layers), work)
    return found


@pytest.mark.parametrize("before", ["", EXAMPLES], ids=["", "examples"])
@pytest.mark.parametrize(("batch_size", "prefill_tokens"), [(1, 4096), (4, 1), (5, 4096), (12, 1), (100, 4096)])
def test_any_number_of_rows_and_prefills(llama, uneven, monkeypatch, batch_size, prefill_tokens, before):
    monkeypatch.setattr(decode, "PREFILL_TOKENS", prefill_tokens)
    work, plain = uneven[before]
    assert answers(shared_runner(llama, llama.layers, batch_size), work) == plain


def test_a_common_beginning_is_what_all_share_and_long_enough():
    shared, rest = tuple(range(40)), [(7, 8), (7, 9, 9), (7,)]
    prompts = [shared + more for more in rest]
    assert prefix.common_prefix(prompts, 100) == (*shared, 7)
    assert prefix.common_prefix(prompts, 36) == shared[:36]
    assert prefix.common_prefix(prompts, 31) == prefix.common_prefix(prompts[:1], 100) == ()
    assert prefix.common_prefix([*prompts, (1, *shared)], 100) == ()


@pytest.mark.parametrize(
    "generation",
    [
        {"until": []},
        {"until": ["e question"], "max_gen_toks": 20},
        {"until": "a"},
        {"until": ["e", "t", "o", "n", "h", "\x14", "�"]},
        {"max_gen_toks": 1},
        {"until": [], "max_gen_toks": 20},
    ],
    ids=str,
)
def test_every_way_to_stop(llama, generation):
    plain, shared = both(llama, generating(**generation), (4, 2, 0))
    assert shared == plain


def test_rows_that_end_at_once_and_rows_that_never_end(llama, monkeypatch):
    """With one row's first token as end-of-text, that row is empty; others run to the limit."""
    first = llama.model(**llama.tokenizer(PROMPTS[0], return_tensors="pt")).logits[0, -1].argmax().item()
    monkeypatch.setattr(llama.model.generation_config, "eos_token_id", [2, first])
    docs = generating(until=[])
    plain, shared = both(llama, docs, range(5))
    assert shared == plain
    unstopped = answers(shared_runner(llama, llama.layers), [Work(d, below(4)) for d in generating(until=["never"])])
    assert len(shared[4, 0][0]) < max(len(text) for responses in unstopped.values() for text in responses)


def test_prompts_longer_than_the_model_are_cut_alike(tiny_base, tiny_adapter):
    short = load(tiny_base, tiny_adapter, max_length=24)
    for before in ("", EXAMPLES):
        plain, shared = both(short, generating(before, max_gen_toks=10), range(5))
        assert shared == plain
        same_numbers(*both(short, choosing(before), range(5)))


def test_the_model_is_as_before(llama):
    tokens = llama.tokenizer("The question", return_tensors="pt")
    before = llama.model(**tokens).logits
    forwards = {name: module.__dict__.get("forward") for name, module in llama.model.named_modules()}
    answers(shared_runner(llama, llama.layers), [Work(d, below(0, 2, 4)) for d in generating()])
    assert {name: module.__dict__.get("forward") for name, module in llama.model.named_modules()} == forwards
    assert torch.equal(llama.model(**tokens).logits, before)


def test_wrappers_come_off_when_the_model_fails(llama, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyError("a bug")

    monkeypatch.setattr(llama.layers.decoder_layers[2].mlp, "forward", fail)
    with pytest.raises(KeyError, match="a bug"):
        answers(shared_runner(llama, llama.layers), [Work(d, below(0, 4)) for d in generating()])
    assert "forward" not in llama.layers.decoder_layers[0].__dict__


class Cramped(nn.Module):
    """Stands for a device that has no room for more than so many rows."""

    def __init__(self, layer, rows):
        super().__init__()
        self.layer, self.rows = layer, rows

    def forward(self, hidden, *args, **kwargs):
        if hidden.shape[0] > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.layer(hidden, *args, **kwargs)


def test_running_out_of_memory_halves_the_batch_and_goes_on(tiny_base, tiny_adapter):
    lm = load(tiny_base, tiny_adapter)
    work = [Work(d, below(0, 2, 4)) for d in generating()]
    expected = answers(plain_runner(lm, lm.layers), work)
    lm.layers.decoder_layers[3] = Cramped(lm.layers.decoder_layers[3], rows=6)
    counters = Counters()
    cramped = dataclasses.replace(lm.layers)
    assert answers(shared_runner(lm, cramped, counters=counters), work) == expected
    assert counters.halved == 1
    assert counters.rows == 15


def test_too_little_memory_for_one_document_says_what_to_do(tiny_base, tiny_adapter):
    lm = load(tiny_base, tiny_adapter)
    lm.layers.decoder_layers[3] = Cramped(lm.layers.decoder_layers[3], rows=0)
    with pytest.raises(MemoryError, match="max_gen_toks=.*sweep_engine=plain"):
        answers(shared_runner(lm, lm.layers), [Work(d, below(0, 2, 4)) for d in generating()])


@pytest.mark.parametrize(
    ("lora", "generation", "reason"),
    [
        ({}, {"do_sample": True, "temperature": 0.7}, "samples"),
        ({}, {"num_beams": 3}, "num_beams"),
        ({"target_parameters": ["mlp.up_proj.weight"], "target_modules": ["q_proj"]}, {}, "target_parameters"),
    ],
)
def test_what_it_cannot_do_is_named(tiny_base, tmp_path, lora, generation, reason):
    lm = load(tiny_base, make_adapter(tiny_base, tmp_path / "adapter", **lora))
    assert reason in why_not_shared(lm, lm.layers, generating(**generation))


def test_layer_passes_follow_the_formula(llama):
    """(L+1)(L+2)/2 - 1 layer passes per document for all of 0..L, where the plain pass makes (L+1) L."""
    counters = Counters()
    work = [Work(d, below(*range(5))) for d in documents("loglikelihood", [[("The question", " s")]])]
    answers(shared_runner(llama, llama.layers, counters=counters), work)
    assert counters.layer_rows == 5 * 6 // 2 - 1


def test_rows_that_say_the_same_are_computed_once_below_their_boundaries(tiny_base, tmp_path):
    """With LoRA in layer 0 alone all K > 0 say the same: 14 states in every forward, where rows alone would have 20."""
    only_first = {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [0]}
    lm = load(tiny_base, make_adapter(tiny_base, tmp_path / "adapter", **only_first))
    docs = documents("generate_until", [[("The question", {"until": [], "max_gen_toks": 6})]])
    counters = Counters()
    found = answers(shared_runner(lm, lm.layers, counters=counters), [Work(docs[0], below(*range(5)))])
    assert len({found[k, 0] for k in range(1, 5)}) == 1 < len({found[k, 0] for k in range(5)})
    assert counters.layer_rows == 6 * 14


@pytest.mark.parametrize(("before", "batch_size"), [("", 1), (EXAMPLES, 2), ("", 3), (EXAMPLES, 16)])
def test_the_evaluated_split_is_answered_as_by_the_harness(llama, batch_size, before, monkeypatch):
    """Rows leave and others take their place, whatever lengths they have."""
    requests = [request for document in generating(before, max_gen_toks=25) for request in document.requests]
    monkeypatch.setattr(llama, "batch_size_per_gpu", batch_size)
    for boundary in (0, 2, 4):
        with llama.layers.keep(Variant.below(boundary, 4)):
            expected = llama.harness_answers("generate_until", list(requests), disable_tqdm=True)
            assert decode_requests(llama, requests) == expected
