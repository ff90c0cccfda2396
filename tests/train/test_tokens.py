"""Loss masks, token by token: the prompt as the harness encodes it, and on the answer and its end alone a loss."""

import pytest
import torch
import transformers
from lm_eval.models.huggingface import HFLM

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.train.examples import Example
from lm_eval_lora_drop.train.tokens import IGNORED, answer_end, encode
from testing.tokenizers_ import INSTRUCT, KINDS, TURNS, byte_level

PAIRS = [
    ("Is it the answer?\nAnswer:", " the other one"),
    ("the question", " and the answer"),
    ("Summary:", "the answer"),  # no delimiter
    ("the quest", "ion"),  # a word is cut in two
    ("the text: ", "is it"),  # a space at the end of the prompt
    ("in the text\n", "\nthe answer\n\nin the text"),
    ("翻译 中:", "你好"),
    ("the answer", " " + "1" * 7),
]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return KINDS[request.param]()


@pytest.fixture(scope="module")
def harness(tokenizer):
    """The harness's own model class around a tiny model with this tokenizer."""
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return HFLM(transformers.LlamaForCausalLM(config), tokenizer=tokenizer, device="cpu")


def text_of(tokenizer, ids):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def split(encoded):
    """Prompt tokens and answer tokens, the labels having been compared with the ids one by one."""
    assert len(encoded.input_ids) == len(encoded.labels)
    masked = [label == IGNORED for label in encoded.labels]
    border = masked.index(False)
    assert masked == [True] * border + [False] * (len(masked) - border)
    assert encoded.labels[border:] == encoded.input_ids[border:]
    return list(encoded.input_ids[:border]), list(encoded.input_ids[border:])


@pytest.mark.parametrize(("prompt", "answer"), PAIRS)
def test_generated_plain(prompt, answer, tokenizer, harness):
    """The model reads the very tokens that it will read at evaluation; what has a loss is the answer, whole, and one
    end-of-text token; prompt and answer read back as the text that they are."""
    encoded = encode(tokenizer, Example(0, prompt, answer, generates=True), answer_end(tokenizer, chat=False), 512)
    before, after = split(encoded)
    asked, _ = harness.tok_batch_encode([prompt])
    assert before == asked[0].tolist()
    assert after[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in after[:-1]
    whole = text_of(tokenizer, tokenizer(prompt + answer).input_ids)
    assert text_of(tokenizer, [*before, *after[:-1]]) == whole
    # As a reader of the generated tokens sees it: the harness decodes those behind the prompt.
    assert text_of(tokenizer, after[:-1]).strip() == answer.strip()


@pytest.mark.parametrize(("prompt", "answer"), PAIRS)
def test_offsets_agree_where_no_token_crosses_the_border(prompt, answer, tokenizer):
    """Where prompt and answer together split at the border, the labels are those that the tokenizer's own character
    offsets give: a second way to the same mask."""
    together = tokenizer(prompt + answer, return_offsets_mapping=True)
    ends = [end for _, end in together.offset_mapping]
    alone = tokenizer(prompt).input_ids
    if together.input_ids[: len(alone)] != alone:
        pytest.skip("a token crosses the border")
    if len(prompt) not in ends:
        pytest.skip("the normaliser moves the offsets")
    border = max(index for index, end in enumerate(ends) if end <= len(prompt)) + 1
    encoded = encode(tokenizer, Example(0, prompt, answer, generates=True), answer_end(tokenizer, chat=False), 512)
    before, after = split(encoded)
    assert before == together.input_ids[:border]
    assert after[:-1] == together.input_ids[border:]


@pytest.mark.parametrize("template", [TURNS, INSTRUCT])
@pytest.mark.parametrize("answer", ["the answer", "你好", "in\nthe text"])
def test_generated_chat(answer, template, tokenizer, harness):
    """Under a chat template the prompt is what the harness renders and encodes, and the answer ends with what ends the
    assistant's turn, which the rendered conversation shows; nothing behind it has a loss."""
    tokenizer.chat_template = template
    messages = [{"role": "user", "content": "Is it in the text?"}]
    prompt = harness.apply_chat_template(messages)
    end = answer_end(tokenizer, chat=True)
    before, after = split(encode(tokenizer, Example(0, prompt, answer, generates=True), end, 512))
    asked, _ = harness.tok_batch_encode([prompt])
    assert before == asked[0].tolist()
    wanted = {TURNS: "<|end|>", INSTRUCT: "</s>"}[template]
    assert after[-1] == tokenizer.convert_tokens_to_ids(wanted)
    assert text_of(tokenizer, after[:-1]).strip() == answer
    conversation = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}], tokenize=False)
    assert conversation.startswith(prompt)
    lead = " " if template == INSTRUCT else ""
    assert conversation.removeprefix(prompt).rstrip("\n") == f"{lead}{answer}{wanted}"
    # A first token that the template leaves out is put before it by the tokenizer, at evaluation and here.
    whole = harness.tok_encode(conversation.rstrip("\n"))
    assert text_of(tokenizer, [*before, *after]) == text_of(tokenizer, whole)


@pytest.mark.parametrize("template", [TURNS, INSTRUCT])
@pytest.mark.parametrize("answer", ["the answer", "in\nthe text", "1111111"])
def test_chat_masks_are_those_of_transformers(answer, template, tokenizer, harness):
    """Token by token the mask that Transformers makes of the same conversation, where the template itself marks what
    the assistant says."""
    turn = {TURNS: "{{ message['content'] }}<|end|>", INSTRUCT: " {{ message['content'] }}</s>"}[template]
    before, _, after = template.rpartition(turn)
    marked = f"{before}{{% generation %}}{turn}{{% endgeneration %}}{after}"
    if template == TURNS:  # one line for every role: the assistant's alone is marked
        theirs = f"{{% if message['role'] == 'assistant' %}}{{% generation %}}{turn}{{% endgeneration %}}"
        # A line break right behind a tag is the tag's own.
        marked = template.replace(f"{turn}\n", f"{theirs}{{% else %}}{turn}{{% endif %}}{{{{ '\\n' }}}}")
    messages = [{"role": "user", "content": "Is it in the text?"}]
    tokenizer.chat_template = marked
    conversation = [*messages, {"role": "assistant", "content": answer}]
    want = tokenizer.apply_chat_template(conversation, return_dict=True, return_assistant_tokens_mask=True)
    tokenizer.chat_template = template
    prompt = harness.apply_chat_template(messages)
    end = answer_end(tokenizer, chat=True)
    encoded = encode(tokenizer, Example(0, prompt, answer, generates=True), end, 512)
    ids = list(encoded.input_ids)
    if tokenizer(prompt).input_ids != tokenizer(prompt, add_special_tokens=False).input_ids and template == TURNS:
        assert ids.pop(0) == tokenizer.bos_token_id  # what the template leaves out the harness puts before it
    mask = [int(label != IGNORED) for label in encoded.labels][-len(ids) :]
    # Behind the assistant's turn the template goes on, and a model is done.
    said = sum(want["assistant_masks"][: len(ids)])
    assert said == sum(want["assistant_masks"]) > 1
    assert ids == want["input_ids"][: len(ids)]
    assert mask == want["assistant_masks"][: len(ids)]


@pytest.mark.parametrize(("prompt", "answer"), PAIRS)
def test_scored_as_the_harness_splits(prompt, answer, tokenizer, harness):
    """A choice's likelihood is taken of the tokens that `_encode_pair` gives: those have the loss, and no others. Where
    tokens merge across the border it may leave none to score, and there is nothing to train."""
    context, continuation = harness._encode_pair(prompt, answer)
    encoded = encode(tokenizer, Example(0, prompt, answer, generates=False), answer_end(tokenizer, chat=False), 512)
    if continuation:
        assert split(encoded) == (context, continuation)
    else:
        assert encoded is None


def test_scored_without_context(tokenizer, harness):
    """The harness reads its prefix token in place of an empty context."""
    encoded = encode(tokenizer, Example(0, "", "the answer", generates=False), answer_end(tokenizer, chat=False), 512)
    before, _ = split(encoded)
    assert before == [harness.prefix_token_id]


def test_a_long_prompt_loses_its_beginning_and_never_the_answer(tokenizer):
    end = answer_end(tokenizer, chat=False)
    whole = encode(tokenizer, Example(0, "the question " * 9, " the answer", generates=True), end, 512)
    size = len(whole.input_ids) - 5
    short = encode(tokenizer, Example(0, "the question " * 9, " the answer", generates=True), end, size)
    assert (whole.cut, short.cut) == (0, 5)
    assert short.input_ids == whole.input_ids[5:]
    assert short.labels == whole.labels[5:]
    answer = len(split(whole)[1])
    assert encode(tokenizer, Example(0, "the question", " the answer", generates=True), end, answer) is None
    assert encode(tokenizer, Example(0, "the question", " the answer", generates=True), end, answer + 1) is not None


def test_a_token_across_the_border_is_never_trained():
    """Together `quest` + `ion` is one token that the model would not see at evaluation; the prompt keeps its own."""
    tokenizer = byte_level(prefix_space=False)
    together = tokenizer("the question").input_ids
    prompt = tokenizer("the quest").input_ids
    assert together[: len(prompt)] != prompt, "the case is not the one that it is meant to be"
    end = answer_end(tokenizer, chat=False)
    before, after = split(encode(tokenizer, Example(0, "the quest", "ion", generates=True), end, 512))
    assert before == prompt
    assert after[:-1] == tokenizer("ion").input_ids


def test_smollm2(smollm2):
    """The real tokenizer, plain and with its chat template, whose turns end with its end-of-text token."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    for chat in (False, True):
        assert answer_end(tokenizer, chat=chat).ids == (tokenizer.eos_token_id,)
        prompt = "Dialogue:\nA: Hi!\n\nSummary:"
        if chat:
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
        answer = "A greets." if chat else " A greets."
        encoded = encode(tokenizer, Example(0, prompt, answer, generates=True), answer_end(tokenizer, chat=chat), 512)
        before, after = split(encoded)
        assert text_of(tokenizer, before) == prompt
        assert text_of(tokenizer, after) == answer + "<|im_end|>"


def test_no_end_of_text():
    tokenizer = byte_level(prefix_space=False)
    tokenizer.eos_token = None
    with pytest.raises(ArgumentError, match="no end-of-text token"):
        answer_end(tokenizer, chat=False)
