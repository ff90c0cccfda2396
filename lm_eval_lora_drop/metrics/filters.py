"""An lm-eval filter that keeps the output as it was written, marked as such.

lm-eval calls `process_results` once per filter and does not say for which. Where other filters extract a number, the
mark tells it that this call has the whole text, so that only here the shape of the output is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lm_eval.api.filter import Filter


class Written(str):
    """An output as the model wrote it."""

    __slots__ = ()


class AsWritten(Filter):
    """The first response to each request, as a `Written`."""

    def apply(self, resps: Iterable[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[Written]:  # noqa: ARG002
        """`resps`: the responses to each request."""
        return [Written(responses[0]) for responses in resps]
