"""The shape of outputs; the expected values follow from the definitions."""

from __future__ import annotations

import pytest

from lm_eval_lora_drop.metrics.shape import count_characters, count_words, looks_cut_off, shape


def test_lengths() -> None:
    """Words stand between white space; Chinese is counted in characters."""
    assert count_words(" two  words\n") == 2
    assert count_characters("你好， 世界 ok") == 7


@pytest.mark.parametrize(
    ("text", "cut_off"),
    [
        ("He has 2 books. He has 2 books. He has 2", True),
        ("He has 2 books. He has 2 books. He has 2 books.", False),
        ("She said: “He has 2 books, he has 2 books.”", False),
        ("他有两本书，他有两本书，他有两本书，他有", True),
        ("他有两本书，他有两本书，他有两本书。", False),
        ("He has 2 * 3 = 6 books and so on and on\n#### 6", False),
        ('{"name": "Ana Lima", "quantity": 3, "express": true}', False),
        ('{"name": "Ana Lima", "quantity": 3, "express": tr', True),
        ("short", False),  # fewer bytes than the limit has tokens
        ("", False),
    ],
)
def test_cut_off(text: str, cut_off: bool) -> None:
    """A text long enough for the limit that ends in the middle of something."""
    assert looks_cut_off(text, 24) is cut_off


def test_shape_names_the_unit() -> None:
    """A Chinese text is measured in characters, any other in words."""
    assert shape("你好。", 8, chinese=True) == {"characters": 3.0, "cut_off": 0.0, "empty": 0.0}
    assert shape(" ", 8) == {"words": 0.0, "cut_off": 0.0, "empty": 1.0}
