"""User errors; everything else is a bug and keeps its own exception."""

from __future__ import annotations

_LONGEST = 1500
"""Characters of a message; the longest of our own, with lists of names, have some 800."""


class LoraDropError(Exception):
    """Base of the errors that carry a message for the user: the rule, what came, the way out.

    What came may be a file of megabytes: the middle of a message that is longer than anybody reads is left out, and
    one of many lines is made one.
    """

    def __init__(self, message: str = "") -> None:
        text = str(message)
        if text.count("\n") > 1:
            text = " ".join(text.split())
        super().__init__(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 400]} ... {text[-300:]}")


class ArgumentError(LoraDropError, ValueError):
    """A model_arg, a command-line option or a config entry that cannot be used as written."""


class AdapterError(LoraDropError, ValueError):
    """An adapter or a base model that cannot be evaluated layer by layer."""
