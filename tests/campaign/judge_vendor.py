"""A vendor that fails: one server for the three wire formats, in a process of its own, that writes down what it bills.

Every request is a line in FOLDER/vendor.jsonl before anything is sent: which question, what was done with it, and
whether that was a complete bill, that is a whole response from which the verdict can be read. Whether a request fails,
and how, depends on the seed, the question and how often it was asked, not on the order in which requests come. The keys
come from the environment, and are repeated in errors, fields and headers wherever a server could.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from testing.judge_servers import VARIABLES, JudgeServer, Request, Say, score_json

AGAIN = "An earlier answer could not be read."
SPOKEN = [
    "{s}",
    "{s}/10",
    "{s} out of 10",
    "Score: {s}",
    "**Score:** {s}",
    "I have 3 concerns. Score: {s}",
    'The text says "Score: 10". I give {s}',
    "out of 10: {s}",
    "Two of 7 facts are missing.\n\nFinal score: {s}/10",
    "<think>10? No, less.</think>{s}",
    "评分：{s}分",
    '```json\n{{"score": {s}}}\n```',
    'The candidate asks for {{"score": 10}}.\n{{"score": {s}}}',
]
"""How a judge that is not held to a schema says its score; all must be read as it."""
UNSAID = ["", "½", "I cannot judge this.", "7 or 8", "Score: 10\nScore: 2", "{s}.5", "11", "not a {s}", "- {s}"]
"""Answers that are none: the question is asked once more."""
UNSAID += ['{{"score": NaN}}', '{{"score": 1e999}}', '{{"score": ' + "9" * 5000 + "}}", '{{"score": {s}', "{{" * 20_000]
BODIES_OF_NOBODY = [
    b"",
    b"null",
    b"[]",
    b"<html>welcome to the airport</html>",
    b'{"error": {"message": "overloaded"}}',
    b'{"choices": [], "type": "error"}',
    b"\xff\xfe\x00{",
    b"[" * 100_000,
    b'{"id": ' + b"9" * 5000,
    b'{"choices": [{"message": 5}], "candidates": 7, "type": "error"}',
]
USAGES: list[Any] = [None, "many", -5, 1e30, 10**30, float("nan"), [], {"prompt_tokens": "1", "input_tokens": -1}]


def truth(prompt: str) -> int:
    """The score that the judge of this campaign gives to a prompt, however often and under whatever faults."""
    return hashlib.sha256(prompt.split("\n\n" + AGAIN)[0].encode()).digest()[0] % 11


def forms(key: str) -> str:
    """A key as servers repeat it: whole, in a link, in a header, cut."""
    return f"{key} {quote(key, safe='')} {base64.b64encode(b'user:' + key.encode()).decode()} {key[:14]}... {key[-9:]}"


class Vendor:
    """The behaviour of the server; `faults` is the share of requests that something goes wrong with."""

    def __init__(self, folder: Path, seed: int, faults: float, keys: dict[str, str]) -> None:
        self.seed, self.faults, self.keys = seed, faults, keys
        self.file = folder / "vendor.jsonl"
        self.asked: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.log = self.file.open("a")

    def __call__(self, request: Request, _: int) -> Say:
        """What to do with a request."""
        question = f"{request.provider} {request.model} {hashlib.sha256(request.prompt.encode()).hexdigest()}"
        with self.lock:
            self.asked[question] += 1
            nth = self.asked[question]
        draw = random.Random(f"{self.seed} {question} {nth}")
        kind, say = "plain", self.said(request, draw, score_json(truth(request.prompt)))
        if draw.random() < self.faults:
            kind = draw.choice(list(FAULTS))
            say = FAULTS[kind](self, request, draw)
        with self.lock:
            line = {"question": question, "nth": nth, "kind": kind, "complete": kind in COMPLETE, "paid": kind in PAID}
            self.log.write(json.dumps(line) + "\n")
            self.log.flush()
        time.sleep(draw.uniform(0.0, 0.02))
        return say

    def said(self, request: Request, draw: random.Random, structured: str) -> Say:
        """A good answer, in whatever form this judge speaks."""
        text = structured if request.structured else draw.choice(SPOKEN).format(s=truth(request.prompt))
        return Say(text)

    def echo(self, request: Request) -> str:
        """The key of this request as servers repeat it."""
        return forms(self.keys[request.provider])


def _status(vendor: Vendor, request: Request, draw: random.Random) -> Say:
    headers = draw.choice([{}, {"retry-after-ms": "20"}, {"Retry-After": "0"}, {"Retry-After": "nan"}])
    status = draw.choice([408, 429, 429, 500, 502, 503, 529])
    return Say(status=status, headers=headers, error="x" * draw.randrange(300) + vendor.echo(request))


def _bomb(vendor: Vendor, request: Request, draw: random.Random) -> Say:
    if draw.random() < 0.5:
        return Say(body=BOMB, headers={"Content-Encoding": draw.choice(["gzip", "gzip, gzip", "br"])})
    return Say(body=b'{"a": "' + b" " * 2_500_000 + b'"}')


def _form(vendor: Vendor, request: Request, draw: random.Random) -> Say:
    """Another form of the same answer, which an OpenAI-shaped server may send."""
    say = vendor.said(request, draw, score_json(truth(request.prompt)))
    value = truth(request.prompt)
    shapes: list[Any] = [
        [{"type": "text", "text": say.text}],
        [{"type": "reasoning", "text": "10"}, {"type": "text", "text": say.text}, None],
        value,
        {"score": value},
    ]
    shape = draw.choice(shapes)

    def change(body: dict[str, Any]) -> dict[str, Any]:
        if request.provider == "openai":
            body["choices"][0]["message"] |= {"content": shape, "refusal": draw.choice([None, 5, False, ""])}
        return {**body, "id": 5, "extra": [vendor.echo(request), float("nan")], "created": "yesterday"}

    say.change = change
    return say


def _usage(vendor: Vendor, request: Request, draw: random.Random) -> Say:
    say, usage = vendor.said(request, draw, score_json(truth(request.prompt))), draw.choice(USAGES)

    def change(body: dict[str, Any]) -> dict[str, Any]:
        name = "usageMetadata" if "usageMetadata" in body else "usage"
        body.pop(name)
        return body if usage is None else {**body, name: usage}

    say.change = change
    return say


def _unsaid(vendor: Vendor, request: Request, draw: random.Random) -> Say:
    if AGAIN in request.prompt:  # twice no answer is no answer; here every question has one
        return vendor.said(request, draw, score_json(truth(request.prompt)))
    return Say(draw.choice(UNSAID).format(s=truth(request.prompt)))


FAULTS: dict[str, Callable[[Vendor, Request, random.Random], Say]] = {
    "status": _status,
    "drop": lambda *_: Say(fault="drop"),
    "half": lambda *_: Say(fault="half"),
    "hang": lambda *_: Say(fault="hang"),
    "drip": lambda *_: Say("7", fault="drip"),
    "redirect": lambda *_: Say(status=307, headers={"Location": "/"}),
    "bomb": _bomb,
    "nobody": lambda vendor, request, draw: Say(body=draw.choice(BODIES_OF_NOBODY)),
    "form": _form,
    "usage": _usage,
    "unsaid": _unsaid,
    "echo": lambda vendor, request, draw: Say(
        vendor.said(request, draw, score_json(truth(request.prompt))).text,
        headers={"x-echo": vendor.echo(request)},
        change=lambda body: {**body, "you_sent": [vendor.echo(request)]},
    ),
}
COMPLETE = ("plain", "form", "usage", "echo")
"""A whole response that says the score: one for each question is what it costs."""
PAID = (*COMPLETE, "unsaid")
"""Whole responses of the model, which a provider bills."""
BOMB = gzip.compress(b" " * 30_000_000)


def start(folder: Path, seed: int, faults: float) -> tuple[int, int]:
    """Serve from a process of its own; its number and the port."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        keys = {provider: os.environ[variable] for provider, variable in VARIABLES.items()}
        server = JudgeServer(Vendor(folder, seed, faults, keys), keys=keys)
        os.write(write, f"{server.port}".encode())
        threading.Event().wait()
    return child, int(os.read(read, 9))
