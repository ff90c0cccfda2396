"""The cache under several processes, of which one at a time asks."""

import json
import logging
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import pytest

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.judge.cache import Cache, answer_key
from lm_eval_lora_drop.judge.panel import Judge, parse_panel
from lm_eval_lora_drop.judge.providers import open_provider
from lm_eval_lora_drop.judge.providers.wire import CallError
from lm_eval_lora_drop.judge.questions import score_question
from lm_eval_lora_drop.judge.score import Item, estimate, questions, rubric_of, score
from testing.judge_servers import BODIES, KEYS, Request, Say, score_json

QUESTION = score_question("summary", "a", "b", "c", structured=True)


def _judge_all(data, path, start, results):
    start.wait()
    items = [Item("summary", "s", "r", f"prediction {i}") for i in range(40)]
    found = score(parse_panel(data, "x"), items, Cache(path))
    results.put((found.by_judge["openai-judge"], found.answers.bill.calls))


def test_processes_pay_for_an_answer_once(serve, tmp_path):
    server = serve(lambda request, nth: Say(score_json(len(request.prompt) % 11)))
    data = {"judges": [server.judge("openai")], "backoff": 0.01}
    context = multiprocessing.get_context("spawn")
    start, results = context.Event(), context.Queue()
    arguments = (data, tmp_path / "shared.sqlite", start, results)
    processes = [context.Process(target=_judge_all, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    start.set()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert all(scores == found[0][0] for scores, _ in found)
    assert sum(calls for _, calls in found) == len(server.requests) == 40


ASKS = """
import pathlib, sys, time
from lm_eval_lora_drop.judge.cache import Cache
with Cache(pathlib.Path(sys.argv[1])).asking():
    print("asking", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def asker(tmp_path):
    """Another process that asks judges through the same cache, and never comes to an end."""
    command = [sys.executable, "-c", ASKS, str(tmp_path / "judges.sqlite")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "asking\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_asks_is_waited_for_and_its_end_is_seen_at_once(asker, ended_by, serve, panel_of, cache, caplog):
    server = serve(lambda request, nth: Say(score_json(7)))
    threading.Timer(3.0, asker.send_signal, [ended_by]).start()
    found = score(panel_of(server.judge("openai")), [Item("summary", "s", "r", "p")], cache)
    assert asker.poll() == -ended_by
    assert found.verdicts == 1
    assert "busy: another process asks judges" in caplog.text
    assert "LORA_DROP_JUDGE_CACHE" not in caplog.text  # another cache would mean to pay again


def test_what_is_cached_is_read_while_another_process_asks(asker, serve, panel_of, cache):
    server = serve(lambda request, nth: Say(score_json(7)))
    panel, items = panel_of(server.judge("openai")), [Item("summary", "s", "r", "p")]
    judge = panel.judges[0]
    body = json.dumps(BODIES["openai"](Request("openai", judge.model, "", True, {}, 0.0), Say(score_json(6))))
    call = cache.begin(answer_key(judge, items[0].question(judge)), judge, QUESTION, (9, 9))
    cache.keep(call, body, (1, 1))
    assert score(panel, items, cache, offline=True).by_judge == {"openai-judge": [6]}
    rubric = rubric_of(panel, items, None)
    (told,) = estimate(panel, {"openai-judge": questions(judge, panel, items, rubric)}, cache)
    assert told.calls == 0
    assert server.requests == []
    assert asker.poll() is None


def test_a_folder_that_takes_no_lock_is_named_before_anything_is_paid(serve, panel_of, cache):
    server = serve(lambda request, nth: Say(score_json(7)))
    Path(f"{cache.path}.lock").mkdir()
    with pytest.raises(ArgumentError, match="cannot be locked"):
        score(panel_of(server.judge("openai")), [Item("summary", "s", "r", "p")], cache)
    assert server.requests == []


def test_equal_outputs_of_two_documents_are_one_call(serve, panel_of, cache):
    server = serve(lambda request, nth: Say(score_json(7)))
    found = score(panel_of(server.judge("openai")), [Item("summary", "s", "r", "p")] * 5, cache)
    assert found.by_judge == {"openai-judge": [7] * 5}
    assert len(server.requests) == 1


def test_a_call_that_a_killed_process_was_making_stays_on_the_bill(cache):
    judge = Judge("openai", "m", "m")
    key = answer_key(judge, QUESTION)
    lost = cache.begin(key, judge, QUESTION, (900, 64))
    assert cache.used([key, key]) == (1, 900, 64)
    assert cache.bodies(key) == []
    kept = cache.begin(key, judge, QUESTION, (900, 64))
    cache.keep(kept, "7", (100, 4))
    refused = cache.begin(key, judge, QUESTION, (900, 64))
    cache.forget(refused)
    assert cache.used([key]) == (2, 1000, 68)
    assert cache.bodies(key) == ["7"]
    assert lost < kept


@pytest.mark.parametrize(
    "other",
    [
        Judge("anthropic", "m", "m"),
        Judge("openai", "n", "m"),
        Judge("openai", "m", "m", base_url="http://x/v1"),
        Judge("openai", "m", "m", options={"temperature": 0}),
        Judge("openai", "m", "m", structured=False),
        Judge("openai", "m", "m", max_tokens=9),
    ],
)
def test_whatever_changes_an_answer_changes_the_key(other):
    assert answer_key(other, QUESTION) != answer_key(Judge("openai", "m", "m"), QUESTION)
    assert answer_key(Judge("openai", "m", "renamed"), QUESTION) == answer_key(Judge("openai", "m", "m"), QUESTION)


def test_a_better_reader_needs_no_new_call(cache):
    judge = Judge("openai", "m", "m")
    key = answer_key(judge, QUESTION)
    body = json.dumps({"choices": [{"message": {"content": "seven"}}]})
    cache.keep(cache.begin(key, judge, QUESTION, (1, 1)), body, (1, 1))
    panel = parse_panel({"judges": [{"provider": "openai", "model": "m"}]}, "x")
    item = Item("summary", "a", "b", "c")
    assert score(panel, [item], cache, offline=True).by_judge == {"m": [None]}
    with sqlite3.connect(cache.path) as connection:  # what a reader that knows number words would see
        connection.execute("UPDATE calls SET body = replace(body, 'seven', '7')")
    assert score(panel, [item], cache, offline=True).by_judge == {"m": [7]}


@pytest.mark.parametrize("kind", ["text", "folder", "pipe", "database", "nul", "user"])
def test_what_is_no_cache_is_named(tmp_path, kind, monkeypatch):
    file = tmp_path / "judges.sqlite"
    if kind == "text":
        file.write_text("no database, this is")
    elif kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "database":
        with sqlite3.connect(file) as connection:
            connection.execute("CREATE TABLE claims (mine TEXT)")
    given = {"nul": "a\0b", "user": "~nosuchuser/x"}.get(kind, str(file))
    if kind == "user":
        monkeypatch.setenv("LORA_DROP_JUDGE_CACHE", given)
    with pytest.raises(ArgumentError, match="LORA_DROP_JUDGE_CACHE"):
        Cache(None if kind == "user" else Path(given))


@pytest.mark.parametrize(
    ("provider", "fault"), [*((provider, "status") for provider in KEYS), ("openai", "drop"), ("google", "half")]
)
def test_no_key_in_exceptions_and_debug_logs(provider, fault, serve, caplog):
    import asyncio

    said = f"you sent {KEYS[provider]}"
    server = serve(lambda request, nth: Say(status=400, error=said) if fault == "status" else Say(fault=fault))
    data = {"judges": [server.judge(provider)], "backoff": 0.01, "attempts": 1}

    async def call():
        panel = parse_panel(data, "x")
        client = open_provider(panel.judges[0], 10.0, panel.redactor())
        try:
            await client.ask(QUESTION)
        finally:
            await client.close()

    with caplog.at_level(logging.DEBUG), pytest.raises(CallError) as caught:
        asyncio.run(call())
    shown = "".join(traceback.format_exception(caught.value))
    assert KEYS[provider] not in shown
    assert KEYS[provider] not in caplog.text
    assert caught.value.__context__ is None
