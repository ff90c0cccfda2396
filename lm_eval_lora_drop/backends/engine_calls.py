"""Runs a method of the harness once per variant while the engine is asked once for all of them.

The harness's methods tokenise prompts, truncate them, ask the engine, and cut its answers at the stop sequences. None
of that depends on the variant, except for what the engine answers. So for the first variant the engine is asked under
all variants, and for the others the method runs again and is handed what the engine said then: every variant's
answers have come through the harness's own code, and the engine has had all rows at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Prompts = Sequence[Sequence[int]]
Ask = Callable[..., list[list[Any]]]
"""Prompts and whatever else the harness gives -> for each variant the outputs to all prompts."""


class SharedEngineCall:
    """Stands in for the engine call while the harness's method runs for variant `index` = 0, 1, ... in turn."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._calls: list[tuple[Prompts, list[list[Any]]]] = []
        self._index = 0
        self._next = 0

    def turn(self, index: int) -> None:
        """From here on the method runs for variant `index`, from its beginning."""
        self._index = index
        self._next = 0

    def __call__(self, prompts: Prompts, *args: Any) -> list[Any]:
        """The outputs to `prompts` under the variant whose turn it is."""
        if self._next == len(self._calls):
            self._calls.append((prompts, self._ask(prompts, *args)))
        asked, outputs = self._calls[self._next]
        assert asked == prompts, "the harness's method does not depend on the variant"
        self._next += 1
        return outputs[self._index]
