"""The shape of an output: its length, whether it looks cut off, whether it is empty.

These cost nothing and make the paper's side finding visible: with fewer layers, outputs grow longer and less formatted.
"""

from __future__ import annotations

import re

FINISHED = re.compile(r"""(?:[.!?…。！？]["'”’»）)\]」』]*|[}\]]|####\s*-?[\d.,]+)$""")
"""How a finished answer ends: with a sentence (perhaps quoted), with JSON's last bracket, with GSM8K's last line."""


def count_words(text: str) -> int:
    """Words between white space."""
    return len(text.split())


def count_characters(text: str) -> int:
    """Characters that are no white space: the length of a Chinese text."""
    return sum(not character.isspace() for character in text)


def looks_cut_off(text: str, max_gen_toks: int) -> bool:
    """Whether the length limit seems to have ended the text; an estimate, since a task sees no tokens.

    It is long enough to hold `max_gen_toks` tokens (a token has at least one byte of UTF-8), and it does not end as a
    finished answer does. The first condition is necessary; the second misses a limit that falls on a sentence's end,
    and a long answer that simply has no full stop is counted too.
    """
    if len(text.encode("utf-8", errors="surrogatepass")) < max_gen_toks:
        return False
    return FINISHED.search(text.rstrip()) is None


def shape(text: str, max_gen_toks: int, *, chinese: bool = False) -> dict[str, float]:
    """The measures as lm-eval metrics: `words` (`characters` of a Chinese text), `cut_off`, `empty`."""
    return {
        **({"characters": float(count_characters(text))} if chinese else {"words": float(count_words(text))}),
        "cut_off": float(looks_cut_off(text, max_gen_toks)),
        "empty": float(not text.strip()),
    }
