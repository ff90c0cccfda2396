"""Texts from models, tasks and files, made safe to show."""

from __future__ import annotations

import re

# C0 and C1 controls without tab and line feed (a terminal obeys them), and Unicode's embeddings, overrides and
# isolates, with which a text reorders what stands after it. The plain marks U+200E, U+200F and U+061C stay: Arabic and
# Hebrew text has them, and they reach no further than their neighbours.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """A text with what a terminal or a page would obey instead of showing written out, e.g. `\\u202e`."""
    return _UNSEEN.sub(lambda sign: f"\\u{ord(sign[0]):04x}", text)
