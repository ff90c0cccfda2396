"""Asks every judge of a panel every question, within the limits, and keeps every answer as it comes.

Nothing here raises because of a judge: what could not be had is a verdict without a value, and says why.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import math
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.judge.cache import Cache, Reply, answer_key
from lm_eval_lora_drop.judge.panel import Judge, Panel
from lm_eval_lora_drop.judge.providers import CallError, Provider, open_provider
from lm_eval_lora_drop.judge.questions import Question

log = logging.getLogger(__name__)

GIVE_UP = 20
"""So many questions in a row without any answer, and a judge is asked no more."""
_POLL = 0.2
Ask = Callable[[Judge], Sequence[Question]]


@dataclass(frozen=True)
class Verdict:
    """What one judge said to one question; `value` is None where it said nothing usable, and `reason` tells why."""

    value: Any
    reason: str = ""
    served_model: str | None = None
    calls: int = 0
    """Calls that brought an answer in this session: 0 where all came from the cache."""


@dataclass
class Bill:
    """What was used in this session; dollars only of judges whose price is known."""

    calls: int = 0
    failed_calls: int = 0
    cached: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float = 0.0
    perhaps: int = 0
    """Calls without an answer that may have been billed all the same: time-outs and lost connections."""
    capped: bool = False


@dataclass
class Answers:
    """`verdicts[judge name][i]` answers question i."""

    verdicts: dict[str, list[Verdict]]
    bill: Bill = field(default_factory=Bill)


def tokens_of(text: str) -> int:
    """Roughly how many tokens a text has: four bytes each, which for English and Chinese errs by a fifth or so."""
    return math.ceil(len(text.encode("utf-8", "replace")) / 4)


def serves_another(asked: str, served: str | None) -> bool:
    """Whether a response names another model than asked for; a dated snapshot of the same model is no other."""
    if served is None:
        return False
    asked, served = asked.removeprefix("models/"), served.removeprefix("models/")
    base = re.sub(r"-latest$", "", asked)
    return asked != served and not re.fullmatch(re.escape(base) + r"-(\d{4}-\d\d-\d\d|\d{8}|\d{3,4})", served)


def ask(panel: Panel, questions: Ask, cache: Cache, *, offline: bool = False) -> Answers:
    """Every judge's verdict on `questions(judge)`; `offline` reads the cache only and needs no key.

    Raises:
        ArgumentError: a key is missing, a cap without prices, an SDK not installed or an option it does not take:
            all of them before the first call.
    """
    if not offline:
        panel.check_keys()
        if panel.max_spend is not None:
            free = [judge.name for judge in panel.judges if judge.price is None and judge.provider != "hf"]
            if free:
                raise ArgumentError(f"max_spend needs the price of every judge; set `price` of {', '.join(free)}.")
    session = _Session(panel, cache, offline)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(session.run(questions))
    # A notebook has a loop already, which cannot wait for another one.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, session.run(questions)).result()


class _Gate:
    """One server's limit: how many calls at once, and none before it wants to be asked again."""

    def __init__(self, limit: int) -> None:
        self.slots = asyncio.Semaphore(limit)
        self.resume_at = 0.0

    async def wait(self) -> None:
        while (rest := self.resume_at - time.monotonic()) > 0:
            await asyncio.sleep(rest)


class _Session:
    def __init__(self, panel: Panel, cache: Cache, offline: bool) -> None:
        self.panel, self.cache, self.offline = panel, cache, offline
        self.bill = Bill()
        self.reserved = 0.0
        self.in_a_row = dict.fromkeys((judge.name for judge in panel.judges), 0)
        self.stopped: dict[str, str] = {}

    async def run(self, questions: Ask) -> Answers:
        self.gates = {judge.where: _Gate(self.panel.limit(judge.provider)) for judge in self.panel.judges}
        providers: dict[str, Provider] = {}
        try:
            if not self.offline:
                for judge in self.panel.judges:
                    providers[judge.name] = open_provider(judge, self.panel.timeout)
            found = await asyncio.gather(
                *(self._all(judge, providers.get(judge.name), questions(judge)) for judge in self.panel.judges)
            )
        finally:
            for provider in providers.values():
                await provider.close()
        return Answers(dict(zip(self.in_a_row, found, strict=True)), self.bill)

    async def _all(self, judge: Judge, provider: Provider | None, questions: Sequence[Question]) -> list[Verdict]:
        return await asyncio.gather(*(self._verdict(judge, provider, question) for question in questions))

    async def _verdict(self, judge: Judge, provider: Provider | None, question: Question) -> Verdict:
        """The verdict on one question; an answer that cannot be read is asked for once more."""
        calls, reason = 0, ""
        served: str | None = None
        for asked in (question, question.again()):
            try:
                reply, called = await self._reply(judge, provider, asked)
            except CallError as failure:
                return Verdict(None, self.panel.redact(str(failure)), served, calls)
            calls += called
            served = reply.model
            value = None if reply.stop == "refusal" else asked.read(reply.text)
            if value is not None:
                return Verdict(value, "", served, calls)
            reason = (
                "refused" if reply.stop == "refusal" else "no verdict in the answer" if reply.text else "empty answer"
            )
            if reply.stop == "length":
                reason += f" (cut off at max_tokens={judge.max_tokens})"
        return Verdict(None, reason, served, calls)

    async def _reply(self, judge: Judge, provider: Provider | None, question: Question) -> tuple[Reply, int]:
        """The cached answer, another process's answer, or a call's; and how many calls were answered for it."""
        key = answer_key(judge, question)
        gate = self.gates[judge.where]
        async with gate.slots:
            while True:
                known = self.cache.get(key)
                if known is not None:
                    self.bill.cached += 1
                    return known, 0
                if provider is None:
                    raise CallError("not asked yet")
                if judge.name in self.stopped:
                    raise CallError(self.stopped[judge.name])
                # Longer than all attempts can take, so that a claim outlives its calls and not its process.
                if self.cache.claim(key, self.panel.attempts * (self.panel.timeout + self.panel.max_wait) + 60):
                    break
                await asyncio.sleep(_POLL)
            try:
                reply = await self._call(judge, provider, question, gate)
            except BaseException:
                self.cache.release(key)
                raise
            self.cache.put(key, judge, question, reply)
            return reply, 1

    async def _call(self, judge: Judge, provider: Provider, question: Question, gate: _Gate) -> Reply:
        """One answer, after as many attempts as the panel allows."""
        for attempt in range(1, self.panel.attempts + 1):
            await gate.wait()
            if judge.name in self.stopped:
                raise CallError(self.stopped[judge.name])
            most = self._reserve(judge, question)
            try:
                reply = await provider.ask(question)
            except CallError as failure:
                self._settle(judge, most, most if failure.perhaps_billed else 0.0)
                self.bill.failed_calls += 1
                self.bill.perhaps += failure.perhaps_billed
                log.debug("judge %s, attempt %d: %s", judge.name, attempt, self.panel.redact(str(failure)))
                if failure.hopeless:
                    self._stop(judge, str(failure))
                too_long = failure.retry_after is not None and failure.retry_after > self.panel.max_wait
                if not failure.retry or too_long or attempt == self.panel.attempts:
                    self._count_failure(judge, failure)
                    raise
                await asyncio.sleep(self._wait(attempt, failure, gate))
                continue
            except BaseException:
                self._settle(judge, most, most)
                raise
            self.in_a_row[judge.name] = 0
            # A provider that names no token counts is believed to have billed what was reserved.
            read, wrote = reply.input_tokens, reply.output_tokens
            known = read is not None and wrote is not None
            cost = judge.price.cost(read or 0, wrote or 0) if judge.price and known else most
            self._settle(judge, most, cost)
            self.bill.calls += 1
            self.bill.input_tokens += read or 0
            self.bill.output_tokens += wrote or 0
            text, model, raw = map(self.panel.redact, (reply.text, reply.model, reply.raw))
            return Reply(text, model, reply.stop, read, wrote, raw)
        raise AssertionError("the last attempt returns or raises")

    def _wait(self, attempt: int, failure: CallError, gate: _Gate) -> float:
        """Seconds until the next attempt: exponential with full jitter, and never before the server wants it."""
        backoff = random.uniform(0.0, min(self.panel.max_wait, self.panel.backoff * 2.0 ** (attempt - 1)))
        if failure.retry_after is None:
            return backoff
        # The whole server asked for peace, so its other calls wait as well.
        gate.resume_at = max(gate.resume_at, time.monotonic() + failure.retry_after)
        return failure.retry_after + random.uniform(0.0, self.panel.backoff)

    def _reserve(self, judge: Judge, question: Question) -> float:
        """Set aside what the call can cost, or stop all calls where the cap does not allow it."""
        if judge.price is None:
            return 0.0
        most = judge.price.cost(tokens_of(question.prompt), judge.max_tokens)
        cap = self.panel.max_spend
        if cap is not None and self.bill.dollars + self.reserved + most > cap:
            self.bill.capped = True
            raise CallError(f"the spending cap of ${cap:g} is reached")
        self.reserved += most
        return most

    def _settle(self, judge: Judge, reserved: float, cost: float) -> None:
        if judge.price is not None:
            self.reserved -= reserved
            self.bill.dollars += cost

    def _count_failure(self, judge: Judge, failure: CallError) -> None:
        self.in_a_row[judge.name] += 1
        if self.in_a_row[judge.name] >= GIVE_UP:
            self._stop(judge, f"given up after {GIVE_UP} questions in a row without an answer, the last: {failure}")

    def _stop(self, judge: Judge, reason: str) -> None:
        if judge.name not in self.stopped:
            self.stopped[judge.name] = self.panel.redact(reason)
            log.warning("judge %s is asked no more: %s", judge.name, self.stopped[judge.name])
