"""The shape of an output: its length, whether it was cut off, whether it is empty.

These cost nothing and make the paper's side finding visible: with fewer layers, answers become longer and less formatted.
"""

from __future__ import annotations

import unicodedata

SENTENCE_ENDS = ".!?…。！？｡．"


def count_words(text: str) -> int:
    """Words between white space."""
    return len(text.split())


def count_characters(text: str) -> int:
    """Characters that are no white space: the length of a Chinese text."""
    return sum(not character.isspace() for character in text)


def looks_cut_off(text: str, max_gen_toks: int) -> bool:
    """Whether the text looks as if the length limit had ended it; an estimate, since a task sees no tokens.

    Two conditions. It is long enough to hold `max_gen_toks` tokens: a token is at least one byte of UTF-8. And it
    does not end as a finished answer does: with a sentence end (closing quotes and brackets after it are fine) or
    with a closing bracket or a digit, as in JSON and `#### 42`.
    """
    if len(text.encode("utf-8", errors="surrogatepass")) < max_gen_toks:
        return False
    end = text.rstrip()
    last = end[-1:]
    return not (
        last in SENTENCE_ENDS or last.isdigit() or unicodedata.category(last or " ") in ("Pe", "Pf") or last in "\"'"
    )


def shape(text: str, max_gen_toks: int, *, chinese: bool = False) -> dict[str, float]:
    """The measures as lm-eval metrics: `words` (or `characters`), `cut_off`, `empty`."""
    length = {"characters": count_characters(text)} if chinese else {"words": count_words(text)}
    return {
        **{name: float(value) for name, value in length.items()},
        "cut_off": float(looks_cut_off(text, max_gen_toks)),
        "empty": float(not text.strip()),
    }
