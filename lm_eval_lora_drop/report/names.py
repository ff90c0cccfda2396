"""Names of runs, shortened to what differs between them; texts of runs, made safe to show."""

from __future__ import annotations

import re
from collections.abc import Sequence

_PART = re.compile(r"[/\\]")
# C0 and C1 controls without tab and line feed (a terminal obeys them), and Unicode's embeddings, overrides and
# isolates, with which a text reorders what stands after it. The plain marks U+200E, U+200F and U+061C stay: Arabic and
# Hebrew text has them, and they reach no further than their neighbours.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """A text with what a terminal or a page would obey instead of showing written out, e.g. `\\u202e`."""
    return _UNSEEN.sub(lambda sign: f"\\u{ord(sign[0]):04x}", text)


def what_differs(values: Sequence[str]) -> list[str]:
    """The values without the path components that all of them begin and end with.

    `out/seed1/adapter`, `out/seed2/adapter` become `seed1`, `seed2`. Values that would be empty, or equal although they
    were not, are left as they are.
    """
    parts = [_PART.split(value.rstrip("/\\")) for value in values]
    shortest = min(map(len, parts), default=0)
    if len(set(values)) < 2 or shortest < 1:
        return list(values)
    start = 0
    while start < shortest and len({tuple(part[: start + 1]) for part in parts}) == 1:
        start += 1
    end = 0
    while start + end < shortest and len({tuple(part[len(part) - end - 1 :]) for part in parts}) == 1:
        end += 1
    short = ["/".join(part[start : len(part) - end]) for part in parts]
    same_order = [short.index(text) for text in short] == [values.index(value) for value in values]
    return short if all(short) and same_order else list(values)
