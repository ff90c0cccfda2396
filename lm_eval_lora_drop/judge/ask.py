"""Asks every judge of a panel every question, within the limits, and keeps every answer as it comes.

Nothing here raises because of a judge: what could not be had is a verdict without a value, and says why.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import random
import re
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.judge.cache import Cache, CacheError, answer_key
from lm_eval_lora_drop.judge.cache.answers import (
    ReadReply,
    known_answer,
    likely_cause,
    no_verdict_reason,
    read_answer,
    usage,
)
from lm_eval_lora_drop.judge.cache.spending import (
    Progress,
    SpendingLimit,
    Usage,
    most_tokens,
    plausible_tokens,
)
from lm_eval_lora_drop.judge.panel import Judge, Panel
from lm_eval_lora_drop.judge.providers import Provider, open_provider
from lm_eval_lora_drop.judge.providers.replies import UnreadableError
from lm_eval_lora_drop.judge.providers.wire import CallError
from lm_eval_lora_drop.judge.questions import Question
from lm_eval_lora_drop.judge.redact import quiet_sdks
from lm_eval_lora_drop.text import logger

log = logger(__name__)

GIVE_UP = 20
"""After this number of questions in a row without an answer, or of paid answers in a row without a verdict, a judge is
asked no more."""
Ask = Callable[[Judge], Sequence[Question]]


@dataclass(frozen=True)
class Verdict:
    """What one judge said to one question; `value` is None where it said nothing usable, and `reason` tells why."""

    value: Any
    reason: str = ""
    served_model: str | None = None


@dataclass
class PanelAnswers:
    """`verdicts[judge name][i]` answers question i."""

    verdicts: dict[str, list[Verdict]]
    bill: Usage = field(default_factory=Usage)


def serves_another(asked: str, served: str | None) -> bool:
    """Whether a response names another model than asked for; a dated snapshot of the same model is no other."""
    if served is None:
        return False
    asked, served = asked.removeprefix("models/"), served.removeprefix("models/")
    base = re.sub(r"-latest$", "", asked)
    return asked != served and not re.fullmatch(re.escape(base) + r"-(\d{4}-\d\d-\d\d|\d{8}|\d{3,4})", served)


def ask(
    panel: Panel, questions: Ask, cache: Cache, *, offline: bool = False, earlier: Ask | None = None
) -> PanelAnswers:
    """Every judge's verdict on `questions(judge)`; `offline` reads the cache only and needs no key.

    The cap holds for these questions together with those that were `earlier` asked for the same purpose.

    Raises:
        ArgumentError: a key is missing, a cap without prices, an SDK not installed, an option it does not take, a cache
            that cannot be read: all of them before the first call.
    """
    if not offline:
        panel.check_keys()
        if panel.max_spend is not None:
            free = [judge.name for judge in panel.judges if judge.price is None and judge.provider != "hf"]
            if free:
                raise ArgumentError(f"max_spend needs the price of every judge; set `price` of {', '.join(free)}.")
    session = _AskingSession(panel, cache, offline)
    with nullcontext() if offline else cache.asking(), quiet_sdks():
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(session.run(questions, earlier))
        # A notebook has a loop already, which cannot wait for another one.
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, session.run(questions, earlier)).result()


class _RateLimit:
    """One server's limit: how many calls at once, and none before it wants to be asked again."""

    def __init__(self, limit: int) -> None:
        self.slots = asyncio.Semaphore(limit)
        self.resume_at = 0.0

    async def wait(self) -> None:
        while (rest := self.resume_at - time.monotonic()) > 0:
            await asyncio.sleep(rest)


class _AskingSession:
    def __init__(self, panel: Panel, cache: Cache, offline: bool) -> None:
        self.panel, self.cache, self.offline = panel, cache, offline
        self.redactor = panel.redactor()
        self.bill = Usage()
        self.in_a_row = dict.fromkeys((judge.name for judge in panel.judges), 0)
        self.stopped: dict[str, str] = {}
        self.in_progress: dict[str, asyncio.Lock] = {}

    async def run(self, questions: Ask, earlier: Ask | None) -> PanelAnswers:
        # Made here, since locks of asyncio belong to the loop that runs.
        self.gates = {judge.where: _RateLimit(self.panel.limit(judge.provider)) for judge in self.panel.judges}
        self.purse = SpendingLimit(self.panel.max_spend, self.bill)
        asked = {judge.name: list(questions(judge)) for judge in self.panel.judges}
        for judge in self.panel.judges:
            self._add_what_was_spent(judge, [*asked[judge.name], *(earlier(judge) if earlier else ())])
        self.progress = Progress(sum(map(len, asked.values())), self.purse)
        providers: dict[str, Provider] = {}
        try:
            if not self.offline:
                for judge in self.panel.judges:
                    providers[judge.name] = open_provider(judge, self.panel.timeout, self.redactor)
            found = await asyncio.gather(
                *(self._all(judge, providers.get(judge.name), asked[judge.name]) for judge in self.panel.judges)
            )
        finally:
            self.progress.close()
            for provider in providers.values():
                await provider.close()
        return PanelAnswers(dict(zip(self.in_a_row, found, strict=True)), self.bill)

    def _add_what_was_spent(self, judge: Judge, questions: list[Question]) -> None:
        """A run that is taken up again goes on with the bill where the one before it stopped."""
        both = (each for question in questions for each in (question, question.again()))
        try:
            calls, read, wrote = self.cache.used({answer_key(judge, question) for question in both})
        except CacheError as error:
            raise ArgumentError(f"{error}. No judge is asked, because paid answers could be paid again.") from error
        self.bill.calls_before += calls
        self.bill.dollars_before += judge.price.cost(read, wrote) if judge.price else 0.0

    async def _all(self, judge: Judge, provider: Provider | None, questions: Sequence[Question]) -> list[Verdict]:
        return await asyncio.gather(*(self._verdict(judge, provider, question) for question in questions))

    async def _verdict(self, judge: Judge, provider: Provider | None, question: Question) -> Verdict:
        """The verdict on one question; an answer that says no score is asked for once more."""
        reason, served = "", None
        try:
            # A second answer is asked for at once: a judge that never scores shows after few items.
            async with self.gates[judge.where].slots:
                for asked in (question, question.again()):
                    answer = await self._answer(judge, provider, asked)
                    served = answer.reply.model or served
                    if answer.value is not None:
                        return Verdict(answer.value, "", served)
                    reason = no_verdict_reason(judge, answer)
        except CallError as failure:
            reason = self.redactor.message(str(failure))
        except CacheError as failure:
            reason = self._halt(failure)
        finally:
            self.progress.step()
        return Verdict(None, reason, served)

    async def _answer(self, judge: Judge, provider: Provider | None, question: Question) -> ReadReply:
        """The cached answer or a call's."""
        key = answer_key(judge, question)
        # Two documents with the same texts are one question: the second finds the answer of the first.
        async with self.in_progress.setdefault(key, asyncio.Lock()):
            if known := await asyncio.to_thread(known_answer, self.cache, judge, question):
                return known
            if provider is None:
                raise CallError("not asked yet")
            return await self._call(key, judge, provider, question)

    async def _call(self, key: str, judge: Judge, provider: Provider, question: Question) -> ReadReply:
        """One answer, after as many attempts as the panel allows."""
        gate, attempt = self.gates[judge.where], 0
        while True:
            attempt += 1
            await gate.wait()
            self._go_on(judge)
            try:
                answer = read_answer(judge, question, await self._paid_call(key, judge, provider, question))
                self.bill.calls += 1
                self._count_answer(judge, answer)
                return answer
            except CallError as error:
                failure = error
            except UnreadableError as error:
                failure = CallError(f"unusable response ({error})", retry=True, perhaps_billed=True)
            self.bill.perhaps += failure.perhaps_billed
            log.debug("judge %s, attempt %d: %s", judge.name, attempt, self.redactor.message(str(failure)))
            if failure.permanent:
                self._stop(judge, str(failure))
            too_long = failure.retry_after is not None and failure.retry_after > self.panel.max_wait
            if not failure.retry or too_long or attempt == self.panel.attempts:
                self._count_failure(judge, failure)
                raise failure
            await asyncio.sleep(self._wait(attempt, failure, gate))

    async def _paid_call(self, key: str, judge: Judge, provider: Provider, question: Question) -> str:
        """One call with its money set aside before and its response stored before anybody reads it."""
        most = most_tokens(judge, question)
        cost = reserved = await self.purse.reserve(judge.price, most)
        try:
            call = await asyncio.to_thread(self.cache.begin, key, judge, question, most)
            try:
                raw = await provider.ask(question)
            except CallError as failure:
                if not failure.perhaps_billed:
                    cost = 0.0
                    await asyncio.to_thread(self.cache.forget, call)
                raise
            body = self.redactor.body(raw)
            used = most
            try:
                await asyncio.to_thread(self.cache.keep, call, body, most)
                used = plausible_tokens(usage(judge, body), most)
                await asyncio.to_thread(self.cache.keep, call, body, used)
            except CacheError as failure:  # it has been paid, so it is used, even if it cannot be kept
                self._halt(failure)
            cost = judge.price.cost(*used) if judge.price else 0.0
            return body
        finally:
            await self.purse.settle(reserved, cost)

    def _go_on(self, judge: Judge) -> None:
        if judge.name in self.stopped:
            raise CallError(self.stopped[judge.name])

    def _wait(self, attempt: int, failure: CallError, gate: _RateLimit) -> float:
        """Seconds until the next attempt: exponential with full jitter, and never before the server wants it."""
        backoff = random.uniform(0.0, min(self.panel.max_wait, self.panel.backoff * 2.0 ** min(attempt - 1, 60)))
        if failure.retry_after is None:
            return backoff
        # The whole server asked for peace, so its other calls wait as well.
        gate.resume_at = max(gate.resume_at, time.monotonic() + failure.retry_after)
        return failure.retry_after + random.uniform(0.0, self.panel.backoff)

    def _count_answer(self, judge: Judge, answer: ReadReply) -> None:
        """After `GIVE_UP` paid answers without a verdict the cause is the same for all questions: stop."""
        self.in_a_row[judge.name] = 0 if answer.value is not None else self.in_a_row[judge.name] + 1
        if self.in_a_row[judge.name] >= GIVE_UP:
            reason = no_verdict_reason(judge, answer)
            self._stop(
                judge,
                f"{GIVE_UP} paid answers in a row without a verdict, the last: {reason}. {likely_cause(judge, answer)}",
            )

    def _count_failure(self, judge: Judge, failure: CallError) -> None:
        self.in_a_row[judge.name] += 1
        if self.in_a_row[judge.name] >= GIVE_UP:
            self._stop(judge, f"{GIVE_UP} questions in a row without an answer, the last: {failure}")

    def _halt(self, failure: CacheError) -> str:
        """What is answered now cannot be kept, so no judge is asked any more."""
        reason = self.redactor.message(str(failure))
        for judge in self.panel.judges:
            self._stop(judge, reason)
        return reason

    def _stop(self, judge: Judge, reason: str) -> None:
        if judge.name not in self.stopped:
            self.stopped[judge.name] = self.redactor.message(reason)
            log.warning("judge %s is stopped: %s", judge.name, self.stopped[judge.name])
