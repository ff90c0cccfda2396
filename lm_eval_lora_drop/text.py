"""Texts from models, tasks, files and users: made safe to show, and compared with the words that exist."""

from __future__ import annotations

import difflib
import logging
import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO

# C0 and C1 controls without tab and line feed (a terminal obeys them), and Unicode's embeddings, overrides and
# isolates, with which a text reorders what stands after it. The plain marks U+200E, U+200F and U+061C stay: Arabic and
# Hebrew text has them, and they reach no further than their neighbours. Line and paragraph separators, which break a
# line, and formatting characters that show nothing.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb]")


def visible(text: str) -> str:
    """A text with what a terminal or a page would obey instead of showing written out, e.g. `\\u202e`."""
    return _UNSEEN.sub(lambda sign: f"\\u{ord(sign[0]):04x}", text)


class VisibleStream:
    """A text stream that writes `visible` text; everything else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As `TextIO.write`."""
        return self._stream.write(visible(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def never_raise_on_print() -> None:
    """From now on a character that the terminal's encoding lacks (ASCII, Latin-1, cp1252) is printed as `?`."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's has not, and is UTF-8
            stream.reconfigure(errors="replace")


def logger(name: str) -> logging.Logger:
    """The logger of a module; its records hold `visible` text, for every handler."""
    found = logging.getLogger(name)
    if _make_visible not in found.filters:
        found.addFilter(_make_visible)
    return found


def _make_visible(record: logging.LogRecord) -> bool:
    record.msg, record.args = visible(record.getMessage()), ()
    return True


def markdown(text: object) -> str:
    """A text as one line of Markdown that shows it as it is: no markup, no HTML, no cell border."""
    line = visible(" ".join(str(text).split())).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*\[\]|])", r"\\\1", line)


def markdown_code(text: object) -> str:
    """A text as a code span of Markdown, also inside a table."""
    line = visible(" ".join(str(text).split())).replace("`", "'").replace("|", "\\|")
    return f"`{line or '-'}`"


def as_integer(value: object) -> object:
    """`20.0` as 20: the harness and JSON make numbers of what stood there before we see it; all else as it came."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 10**15 else value


def shown(value: object, most: int = 80) -> str:
    """A value as a message quotes it: on one line, at most `most` characters of it, control characters escaped."""
    # An integer of thousands of digits cannot even be printed.
    if isinstance(value, int) and abs(value) >= 10**18:
        return "a number of more than 18 digits"
    try:
        text = " ".join(str(as_integer(value)).split())
    except (ValueError, RecursionError):  # digits or brackets by the thousand inside a list
        return f"a {type(value).__name__} that cannot be printed"
    return visible(text if len(text) <= most else f"{text[:most]}...")


def quoted(value: object) -> str:
    """`shown`, a text in quotes."""
    return repr(shown(value)) if isinstance(value, str) else shown(value)


def nearest(word: object, words: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The one of `words` that is most like `word`, None where none is; 1 as `cutoff` takes equal ones only."""
    text = shown(word, 40).lower()
    near = difflib.get_close_matches(text, list(words), n=1, cutoff=cutoff)
    return near[0] if near else None


def did_you_mean(word: object, words: Iterable[str], *, option: str = "", otherwise: str = "") -> str:
    """What an error adds for a misspelt `word`: ` Did you mean X?`, or ` {otherwise}` where nothing is near.

    `option` is the name that the word was given for: ` Did you mean option=X?`.
    """
    near = nearest(word, words)
    if near is None:
        return f" {otherwise}" if otherwise else ""
    return f" Did you mean {option + '=' if option else ''}{near}?"
