"""Small tokenizers of the kinds that differ at the border of prompt and answer; nothing is downloaded."""

from __future__ import annotations

import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = ["the question and the answer: is it in the text of the other one? Yes. No. Summary:\nthe answer"] * 5
SPECIAL = ["<pad>", "<s>", "</s>", "<|turn|>", "<|end|>"]
TURNS = (
    "{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
"""Like ChatML: a turn ends with a token that is not the end of text."""
INSTRUCT = (
    "<s>{% for message in messages %}{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% elif message['role'] == 'assistant' %} {{ message['content'] }}</s>"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}{% endfor %}"
)
"""Like Llama 2's: begins with the first token, puts a space before an answer, knows no system role."""


def _finish(tokenizer: tokenizers.Tokenizer, chat_template: str | None) -> transformers.PreTrainedTokenizerFast:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<|turn|>", "<|end|>"],
        chat_template=chat_template,
        model_max_length=512,
    )


def byte_level(*, prefix_space: bool, chat_template: str | None = TURNS) -> transformers.PreTrainedTokenizerFast:
    """As GPT-2 (no first token), with or without a space put before a text."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    return _finish(tokenizer, chat_template)


def metaspace(chat_template: str | None = INSTRUCT) -> transformers.PreTrainedTokenizerFast:
    """As Llama 2's SentencePiece: spaces are characters, one is put before a text, `<s>` begins it, else bytes."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    characters = sorted({char for text in TEXT for char in text.replace(" ", "▁")} - {"\n"})
    words = ["▁the", "th", "▁t", "he", "an", "▁an", "▁a", "er", "in", "▁i", "s:", ":▁", "o▁"]
    vocab = {token: index for index, token in enumerate(dict.fromkeys([*SPECIAL, *fallback, "▁", *characters, *words]))}
    merges = [("▁t", "he"), ("t", "h"), ("▁", "t"), ("h", "e"), ("a", "n"), ("▁", "an"), ("▁", "a"), ("e", "r")]
    merges += [("i", "n"), ("▁", "i"), ("s", ":"), (":", "▁"), ("o", "▁")]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return _finish(tokenizer, chat_template)


def unigram(chat_template: str | None = TURNS) -> transformers.PreTrainedTokenizerFast:
    """As T5's and XLNet's: a Unigram model on words that carry their space, merging nothing across words."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    alphabet = sorted(
        {char for text in TEXT for char in text} | set("0123456789abcdefghijklmnopqrstuvwxyz|<>[]/INSTAQ#你好中")
    )
    tokenizer.train_from_iterator(
        TEXT,
        trainers.UnigramTrainer(
            vocab_size=200,
            special_tokens=[*SPECIAL, "<unk>"],
            unk_token="<unk>",
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return _finish(tokenizer, chat_template)


KINDS = {
    "byte_level": lambda: byte_level(prefix_space=False),
    "byte_level_prefix_space": lambda: byte_level(prefix_space=True),
    "metaspace": metaspace,
    "unigram": unigram,
}
