"""What judges cost: set aside before a call, settled after it, and never more than the cap."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass

from tqdm import tqdm

from lm_eval_lora_drop.judge.panel import Judge, Price
from lm_eval_lora_drop.judge.providers.wire import CallError
from lm_eval_lora_drop.judge.questions import Question
from lm_eval_lora_drop.text import logger

log = logger(__name__)

_OVERHEAD = 300
"""Input tokens of a call beside its prompt: schema, roles, the provider's own words."""
_BELIEVABLE = 10
"""A token count of more than this multiple of the maximum of the call is a mistake of the server."""
_EVERY = 30.0
"""Seconds between two lines about progress in a log."""


def tokens_of(text: str) -> int:
    """Roughly how many tokens a text has: four bytes each, which for English and Chinese errs by a fifth or so."""
    return math.ceil(len(text.encode("utf-8", "replace")) / 4)


def most_tokens(judge: Judge, question: Question) -> tuple[int, int]:
    """Input and output tokens that a call can take at most: no tokenizer makes more tokens than a text has bytes."""
    return len(question.prompt.encode("utf-8", "replace")) + _OVERHEAD, judge.max_tokens


def plausible_tokens(told: tuple[int | None, int | None], most: tuple[int, int]) -> tuple[int, int]:
    """What a response says it took, or `most` for a count that is missing or cannot be true.

    Counts above `most` are believed to a point, since a server may add words of its own, and the money is spent.
    """
    read, wrote = (
        limit if value is None or not 0 <= value <= _BELIEVABLE * limit + 1000 else value
        for value, limit in zip(told, most, strict=True)
    )
    return read, wrote


@dataclass
class Usage:
    """What was used in this session; dollars only of judges whose price is known.

    `dollars_before` and `calls_before` are what the same questions had used before it, by runs that were
    killed, stopped or completed; calls that may have been billed without an answer are among them.
    """

    calls: int = 0
    perhaps: int = 0
    """Calls without an answer that may have been billed all the same: time-outs and lost connections."""
    dollars: float = 0.0
    capped: bool = False
    calls_before: int = 0
    dollars_before: float = 0.0

    @property
    def dollars_in_all(self) -> float:
        """Of this session and of those before it."""
        return self.dollars_before + self.dollars


class SpendingLimit:
    """Sets money aside under a cap in US dollars, for calls that are made at the same time."""

    def __init__(self, cap: float | None, bill: Usage) -> None:
        self._cap, self._bill = cap, bill
        self._reserved, self._under_way = 0.0, 0
        self._settled = asyncio.Condition()

    async def reserve(self, price: Price | None, tokens: tuple[int, int]) -> float:
        """Set aside what a call can cost, waiting for those under way to be settled where that can make room.

        Raises:
            CallError: it could exceed the cap even so.
        """
        most = price.cost(*tokens) if price else 0.0
        async with self._settled:
            while self._cap is not None and self._bill.dollars_in_all + self._reserved + most > self._cap:
                if self._under_way == 0 or self._bill.dollars_in_all + most > self._cap:
                    self._bill.capped = True
                    raise CallError(f"the spending cap of ${self._cap:g} is reached")
                await self._settled.wait()
            self._reserved += most
            self._under_way += 1
        return most

    async def settle(self, reserved: float, cost: float) -> None:
        """The call is over and has cost `cost`."""
        async with self._settled:
            self._under_way -= 1
            # Sums of floats leave crumbs, for which nobody should wait.
            self._reserved = self._reserved - reserved if self._under_way else 0.0
            self._bill.dollars += cost
            self._settled.notify_all()

    def told(self) -> str:
        """For a progress bar: spent so far, and what is left."""
        spent = f"${self._bill.dollars_in_all:.4f} spent"
        left = "" if self._cap is None else f", ${max(0.0, self._cap - self._bill.dollars_in_all):.4f} left"
        return spent + left


class Progress:
    """A bar where somebody looks, and a line in the log now and then."""

    def __init__(self, total: int, purse: SpendingLimit) -> None:
        self._purse, self._total, self._done = purse, total, 0
        self._next = time.monotonic() + _EVERY
        # Nothing to see below a second: a rescoring from the cache stays quiet.
        self._bar = tqdm(total=total, desc="judges", unit="verdict", disable=None, delay=1.0, leave=False)

    def step(self) -> None:
        """One more verdict, or none, is final."""
        self._done += 1
        self._bar.set_postfix_str(self._purse.told(), refresh=False)
        self._bar.update()
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _EVERY
            log.info("judges: %d of %d verdicts, %s", self._done, self._total, self._purse.told())

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()
