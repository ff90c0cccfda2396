"""Texts from models, tasks, files and users: made safe to show, and compared with the words that exist. And numbers:
the one place that decides how many digits of a score are shown.

A standard error is known to about two digits, so a score is shown to the place of the second digit of its standard
error: `34.1 ± 5.6`, `0.500 ± 0.071`. Scores that stand in one column share one number of decimals.
"""

from __future__ import annotations

import difflib
import logging
import math
import os
import re
import sys
from collections.abc import Iterable
from statistics import median
from typing import Any, TextIO

NOTHING = "-"
"""Stands for a number that is not known."""
_MOST_DECIMALS = 12

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
    """From now on a character that the terminal's encoding lacks (ASCII, Latin-1, cp1252) is printed as `?`, and what
    goes to a stream that was closed (`>&-`) is lost."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
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


_DECIMALS_OF_SHARES = 3
"""The fewest of a score within 0..1, whatever its standard error: 0.625 and 0.62 are one number."""


def decimals_for(stderr: float | None, value: float | None = None) -> int:
    """How many decimals a score with this standard error is shown with.

    Where the standard error is unknown or 0, `value` gets three significant digits (34.1, 0.412), at most four
    decimals.
    """
    if stderr is not None and math.isfinite(stderr) and stderr > 0:
        # Formatting rounds first: 0.0996 is 0.10 with two digits, not 0.100.
        exponent = int(f"{stderr:.1e}".partition("e")[2])
        return min(max(0, 1 - exponent), _MOST_DECIMALS)
    if value is None or not math.isfinite(value) or value == 0:
        return 2
    return min(_decimals_of_digits(value, 3), 4)


def _decimals_of_digits(value: float, digits: int) -> int:
    exponent = int(f"{abs(value):.{digits - 1}e}".partition("e")[2])
    return max(0, digits - 1 - exponent)


def decimals_of_difference(difference: float, interval: tuple[float, float] | None) -> int:
    """How many decimals a difference, its 95 % interval and the two scores are shown with.

    Such an interval is about four standard errors wide.
    """
    return decimals_for(None if interval is None else (interval[1] - interval[0]) / 4, difference)


def decimals_of_column(rows: Iterable[tuple[float | None, float | None]]) -> int:
    """How many decimals all (score, standard error) of a column are shown with: those of the median standard error."""
    rows = list(rows)
    known = [stderr for _, stderr in rows if stderr is not None and math.isfinite(stderr) and stderr > 0]
    values = [value for value, _ in rows if value is not None and math.isfinite(value)]
    decimals = decimals_for(median(known)) if known else decimals_for(None, max(map(abs, values), default=0.0))
    return max(decimals, _DECIMALS_OF_SHARES) if values and all(0 <= value <= 1 for value in values) else decimals


def number(value: float | None, decimals: int, *, sign: bool = False) -> str:
    """The number with `decimals` decimals, `-` where it is not known; never `-0.0`."""
    if value is None or not math.isfinite(value):
        return NOTHING
    # Adding 0.0 turns the -0.0 that rounding leaves behind into 0.0.
    return f"{round(value, decimals) + 0.0:{'+' if sign else ''}.{decimals}f}"


def with_error(value: float | None, stderr: float | None, decimals: int | None = None, *, sign: bool = False) -> str:
    """`34.1 ± 5.6`; the score alone where its standard error is not known."""
    places = decimals
    if places is None:
        # A difference (with a sign) has no range of its own.
        places = decimals_for(stderr, value) if sign else decimals_of_column([(value, stderr)])
    text = number(value, places, sign=sign)
    if text == NOTHING or stderr is None or not math.isfinite(stderr):
        return text
    return f"{text} ± {number(stderr, places)}"


def significant(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """A number that has no standard error (a spread, a tolerance) with `digits` significant digits: `0.16`, `2.4e-06`
    below a ten-thousandth; `-` where it is not known."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if 0 < abs(value) < 1e-4:
        return f"{value:{'+' if sign else ''}.{digits - 1}e}"
    return number(value, _decimals_of_digits(value, digits) if value else 0, sign=sign)


def p_value(p: float | None) -> str:
    """A p-value with two digits of its own, three decimals from 0.1 on, never 0; "" where nothing was tested."""
    if p is None:
        return ""
    return f"{p:.3f}" if p >= 0.0995 else f"{p:.2g}"


def duration_text(seconds: float | None) -> str:
    """Whole seconds up to 90, then minutes, then hours: `48 s`, `12 min`, `2.4 h`; `-` where it is not known."""
    if seconds is None:
        return NOTHING
    if seconds < 90:
        return f"{number(seconds, 0)} s"
    return f"{number(seconds / 60, 0)} min" if seconds < 5400 else f"{number(seconds / 3600, 1)} h"


def percent(share: float) -> str:
    """A share as a whole percentage: `10 %`; `<1 %` and `>99 %` where rounding would say none or all."""
    if 0 < share < 0.005:
        return "<1 %"
    if 0.995 < share < 1:
        return ">99 %"
    return f"{round(100 * share)} %"
