"""How answers end: at any batch size, in every pass, where HFLM ends them at batch size 1 with the adapter edited by
hand."""

import json
import re
from contextlib import contextmanager

import pytest
import tokenizers
import transformers
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file, save_file

from lm_eval_lora_drop.backends.hf import LoraDropLM
from lm_eval_lora_drop.engine import decode, requests
from lm_eval_lora_drop.engine.evaluated import decode_requests
from lm_eval_lora_drop.engine.plain import batches_of, plain_runner
from lm_eval_lora_drop.engine.session import Counters
from lm_eval_lora_drop.engine.shared import shared_runner, why_not_shared
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.sweep.backend import Work
from lm_eval_lora_drop.variant import Variant
from testing.tiny import SIZES, make_adapter, make_base
from tests.engine.test_shared import answers, below, generating

LIMIT = 16
KS = (4, 2, 0)
SPECIAL = ("<pad>", "<s>", "</s>", "<|im_end|>", "<|eot|>")
# Tokens that the random model says often, by the number of the special token that is said in their place.
OFTEN = {3: 134, 4: 115}


def make_model(folder):
    """A base whose tokenizer ends texts with <|im_end|> where its generation config says </s>."""
    base = make_base(folder / "base")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=SIZES["vocab_size"],
        special_tokens=list(SPECIAL),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the question and the answer are in the text of the other one"] * 5, trainer)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|im_end|>", pad_token="<pad>", model_max_length=256,
        additional_special_tokens=["</s>", "<|eot|>"],
    ).save_pretrained(base)  # fmt: skip
    weights = load_file(base / "model.safetensors")
    head = weights["lm_head.weight"]
    for special, often in OFTEN.items():
        head[[special, often]] = head[[often, special]]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "generation_config.json").read_text())
    assert config["eos_token_id"] == 2
    return base, make_adapter(base, folder / "adapter")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Ours at batch size 5, and HFLM."""
    folder = tmp_path_factory.mktemp("stops")
    base, adapter = make_model(folder)
    settings = {"pretrained": str(base), "peft": str(adapter), "dtype": "float32", "device": "cpu"}
    ours = LoraDropLM(**settings, boundary="auto", batch_size=5, sweep_dir=str(folder))
    return ours, HFLM(**settings, batch_size=1)


@contextmanager
def edited(hf, boundary):
    """The adapter with B = 0 in the layers from `boundary` on."""
    above = {
        parameter: parameter.data.clone()
        for name, parameter in hf.model.named_parameters()
        if "lora_B" in name and int(re.search(r"layers\.(\d+)\.", name)[1]) >= boundary
    }
    for parameter in above:
        parameter.data.zero_()
    yield
    for parameter, before in above.items():
        parameter.data.copy_(before)


ASKED = {}


def alone(hf, docs, rows=1):
    """HFLM's own answers, at batch size 1 unless told otherwise; to the same question they are remembered."""
    key = (str(docs[0].requests[0].args[1]), rows)
    if key not in ASKED:
        ASKED[key] = ask_alone(hf, docs, rows)
    return ASKED[key]


def ask_alone(hf, docs, rows):
    found = {}
    for boundary in KS:
        with edited(hf, boundary), batches_of(hf, rows):
            texts = hf.generate_until([document.requests[0] for document in docs], disable_tqdm=True)
        found.update({(boundary, document.doc_id): (text,) for document, text in zip(docs, texts, strict=True)})
    return found


def by_each_pass(lm, docs):
    """What each of our passes says: the sweep's two, HFLM's code in a batch and the decoder on the evaluated split."""
    work = [Work(document, below(*KS)) for document in docs]
    counters = Counters()
    if why_not_shared(lm, lm.layers, docs) is None:
        yield "shared", answers(shared_runner(lm, lm.layers, None, counters), work)
        assert counters.fell_back is None
        assert counters.compared
        for boundary in KS:
            with lm.layers.keep(Variant.below(boundary, 4)):
                texts = decode_requests(lm, [document.requests[0] for document in docs])
            yield "decoder", {(boundary, document.doc_id): (text,) for document, text in zip(docs, texts, strict=True)}
    yield "plain", answers(plain_runner(lm, lm.layers), work)


KINDS = {
    "the tokenizer's end token is not the model's": (["never said"], "<|im_end|>"),
    "a special stop": (["<|eot|>"], "<|eot|>"),
    "two special stops": (["<|eot|>", "<|im_end|>", "q"], "<|eot|>"),
    "ordinary text": (["u", "\n"], "<|im_end|>"),
    "an empty stop": ([""], None),
    "an empty stop beside a special one": (["", "<|eot|>"], None),
    "none but the end of text": ([], "<|im_end|>"),
    "a special stop that no tokenizer knows": (["<|never|>"], "<|im_end|>"),
}


SAMPLED = {"do_sample": True, "temperature": 1.0, "top_k": 1}


@pytest.mark.parametrize(("kind", "more"), [*((kind, {}) for kind in KINDS), ("two special stops", SAMPLED)])
def test_every_answer_ends_where_it_ends_at_batch_size_1(models, kind, more):
    lm, hf = models
    until, _ = KINDS[kind]
    docs = generating(until=until, max_gen_toks=LIMIT, **more)
    expected = alone(hf, docs)
    for name, found in by_each_pass(lm, docs):
        assert found == {key: expected[key] for key in found}, name


def test_stops_that_mix_special_and_ordinary_text(models):
    """A stop sequence that is in the text with special tokens only, spread over two tokens or three."""
    lm, hf = models
    said = [text for document in generating() for text in raw(hf, document.requests[0].args[0])]
    mixed = {text for text in said if "<|" in text and "�" not in text and text not in SPECIAL}
    assert len(mixed) > 1
    docs = generating(until=sorted(mixed)[::2], max_gen_toks=LIMIT)
    expected = alone(hf, docs)
    for name, found in by_each_pass(lm, docs):
        assert found == {key: expected[key] for key in found}, name


def raw(hf, prompt):
    """Texts of two and three neighbouring tokens said to a prompt, special ones included."""
    ids, mask = hf.tok_batch_encode([prompt])
    said = hf.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=LIMIT, do_sample=False)
    tokens = said[0, ids.shape[1] :].tolist()
    return [hf.tokenizer.decode(tokens[i : i + n]) for n in (2, 3) for i in range(len(tokens) - n + 1)]


@pytest.mark.parametrize("kind", ["the tokenizer's end token is not the model's", "a special stop", "an empty stop"])
def test_one_warning_where_hf_answers_otherwise_in_a_batch(models, kind, caplog):
    """And none where it does not, or where our batch size is 1 too."""
    lm, hf = models
    until, special = KINDS[kind]
    docs = generating(until=until, max_gen_toks=LIMIT)
    assert (alone(hf, docs) != alone(hf, docs, rows=5)) == (special is not None)
    for engine in ("shared", "plain"):
        for rows, warnings in ((5, 1), (1, 0)) if engine == "plain" else ((5, 1),):
            requests._warned.clear()
            caplog.clear()
            with batches_of(lm, rows):
                found = dict(by_each_pass(lm, docs)) if engine == "shared" else None
                found = found or answers(plain_runner(lm, lm.layers), [Work(one, below(*KS)) for one in docs])
            assert found
            said = [record.getMessage() for record in caplog.records if "Answers end at" in record.getMessage()]
            assert len(said) == (warnings if special else 0), said
            assert all("batch_size=1" in text for text in said)


def test_beams_are_answered_one_request_at_a_time(models):
    """HFLM looks at the first few beams of a batch only."""
    lm, hf = models
    docs = generating(until=["<|eot|>", "u"], max_gen_toks=LIMIT, num_beams=2)
    assert alone(hf, docs) != alone(hf, docs, rows=5)
    assert answers(plain_runner(lm, lm.layers), [Work(one, below(*KS)) for one in docs]) == alone(hf, docs)


@pytest.mark.parametrize("name", ["assistant_early_exit", "prompt_lookup_num_tokens"])
def test_assisted_generation_is_asked_one_request_at_a_time(name, models, monkeypatch):
    """Ended in a traceback of Transformers at any batch size but 1."""
    lm, hf = models
    for model in (lm.model, hf.model):
        monkeypatch.setattr(model.generation_config, name, 2)
    docs = generating(until=["u"], max_gen_toks=8)
    assert why_not_shared(lm, lm.layers, docs) == f"the model's generation config sets {name}"
    assert answers(plain_runner(lm, lm.layers), [Work(one, below(*KS)) for one in docs]) == ask_alone(hf, docs, 1)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"a_typo": 1}, "a_typo"),
        ({"max_gen_toks": 400}, "400"),
        ({"do_sample": True}, "strictly positive"),
        ({"until": None}, "must be of type"),
        ({"stop": ["a"]}, "'stop'"),
    ],
    ids=str,
)
def test_arguments_that_hf_refuses_are_said_in_a_line(more, reason, models):
    lm, hf = models
    (document, *_) = generating(**more)
    request = document.requests[0]
    with pytest.raises((ValueError, AssertionError, TypeError)):
        hf.generate_until([request], disable_tqdm=True)
    with pytest.raises(ArgumentError, match=f"cannot be answered, with --model hf either.*{reason}.*--gen_kwargs"):
        lm.harness_answers("generate_until", [request], disable_tqdm=True)


def test_of_each_kind_of_end_one_answer_is_compared_to_its_end(models):
    lm, _ = models
    docs = generating(until=["<|eot|>", "u"], max_gen_toks=LIMIT)
    counters = Counters()
    answers(shared_runner(lm, lm.layers, None, counters), [Work(one, below(*KS)) for one in docs])
    assert counters.compared.keys() == {"token limit", "stop sequence '<|im_end|>'", "stop sequence 'u'"}
    assert counters.compared["token limit"] == LIMIT


def ends_late(monkeypatch):
    """A stop sequence is seen one token after it was said."""

    class Late(requests.StopWatch):
        def met(self, rows):
            return super().met([row[:-1] or row for row in rows])

    monkeypatch.setattr(decode, "StopWatch", Late)


def ends_early(monkeypatch):
    """Three tokens before the limit a row is taken for finished."""
    ends_by = requests.Rules.ends_by

    def early(self, said, stop):
        return ends_by(self, said, stop) or ("token limit" if len(said) == self.max_new_tokens - 3 else None)

    monkeypatch.setattr(requests.Rules, "ends_by", early)


def goes_wrong_late(monkeypatch):
    """Positions are wrong from the twelfth new token on, behind what the check before the sweep reads."""
    forward = decode.Decoder._forward

    def wrong(self, route, tokens, mask, positions, cache):
        late = tokens.shape[1] == 1 and max(len(group.generated) for group in self._groups) > 11
        return forward(self, route, tokens, mask, positions + 9 * late, cache)

    monkeypatch.setattr(decode.Decoder, "_forward", wrong)


@pytest.mark.parametrize("fault", [ends_late, ends_early, goes_wrong_late])
def test_a_fault_at_the_end_of_answers_is_found_before_any_is_used(models, monkeypatch, caplog, fault):
    lm, hf = models
    docs = generating(until=["<|eot|>", "u"], max_gen_toks=LIMIT)
    expected = alone(hf, docs)
    assert lm.prepare(docs, below(*KS)).engine == "shared"
    fault(monkeypatch)
    counters = Counters()
    assert answers(shared_runner(lm, lm.layers, None, counters), [Work(one, below(*KS)) for one in docs]) == expected
    assert counters.fell_back.startswith("NotShareable")
    assert "Falling back to the plain pass from here on" in caplog.text
