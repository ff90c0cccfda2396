"""The cache under several processes, and a claim that outlives nobody."""

import json
import logging
import multiprocessing
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import traceback

import pytest

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.judge.cache import Cache, answer_key
from lm_eval_lora_drop.judge.panel import Judge, parse_panel
from lm_eval_lora_drop.judge.providers import open_provider
from lm_eval_lora_drop.judge.providers.wire import CallError
from lm_eval_lora_drop.judge.questions import score_question
from lm_eval_lora_drop.judge.score import Item, score
from testing.judge_servers import KEYS, Say, score_json

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


CLAIMS = """
import pathlib, sys, time
from lm_eval_lora_drop.judge.cache import Cache
cache = Cache(pathlib.Path(sys.argv[1]))
for _ in range(600):
    if cache.claim("k"):
        break
    time.sleep(0.1)
print("claimed", flush=True)
time.sleep(float(sys.argv[2]))
"""


def claiming(path, seconds=600.0, *wrapper):
    """A process that claims "k" as soon as it can, and stays."""
    command = [*wrapper, sys.executable, "-c", CLAIMS, str(path), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "claimed\n"
    return process


@pytest.fixture
def claimant(tmp_path):
    process = claiming(tmp_path / "judges.sqlite")
    yield process
    process.kill()
    process.wait()


def test_a_claim_ends_with_its_process_at_once_and_the_log_says_so(tmp_path, claimant, caplog):
    cache = Cache(tmp_path / "judges.sqlite")
    with caplog.at_level(logging.INFO):
        assert not cache.claim("k")
        assert f"process {claimant.pid} " in caplog.text
        claimant.kill()
        claimant.wait()
        assert cache.claim("k")
    assert "is gone: its 1 questions in flight are asked again" in caplog.text
    assert not Cache(tmp_path / "judges.sqlite").claim("k")
    cache.release("k")
    assert Cache(tmp_path / "judges.sqlite").claim("k")


@pytest.mark.parametrize("column", [("pid", os.getpid()), ("host", "another-name"), ("pid", 1)])
def test_neither_a_reused_pid_nor_a_new_host_name_keeps_a_dead_claim_alive(tmp_path, claimant, column):
    """As in a container that is started anew: another host name, and its first process has the old one's number."""
    claimant.kill()
    claimant.wait()
    name, value = column
    with sqlite3.connect(tmp_path / "judges.sqlite") as connection:
        connection.execute(f"UPDATE owners SET {name} = ?", (value,))
    assert Cache(tmp_path / "judges.sqlite").claim("k")


def test_a_child_that_outlives_its_parent_does_not_hold_the_parents_claim(tmp_path):
    code = CLAIMS.replace(
        "time.sleep(float(sys.argv[2]))", "import os\nif os.fork() == 0: time.sleep(20)\nelse: os._exit(1)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "judges.sqlite"), "0"]
    subprocess.run(command, stdout=subprocess.DEVNULL)
    assert Cache(tmp_path / "judges.sqlite").claim("k")


def test_a_stopped_process_loses_its_claim_after_the_lease_and_not_before(tmp_path, claimant, monkeypatch):
    """Also what happens where locks cannot tell: another machine, a file system without them."""
    from lm_eval_lora_drop.judge.cache import owners

    os.kill(claimant.pid, signal.SIGSTOP)
    now = [1000.0]
    monkeypatch.setattr(owners.time, "monotonic", lambda: now[0])
    cache = Cache(tmp_path / "judges.sqlite")
    assert not cache.claim("k")
    now[0] += owners.LEASE - 1
    assert not cache.claim("k")
    now[0] += 2
    assert cache.claim("k")


def test_another_machine_is_watched_by_its_heartbeat(tmp_path, claimant, monkeypatch):
    from lm_eval_lora_drop.judge.cache import owners

    now = [1000.0]
    monkeypatch.setattr(owners.time, "monotonic", lambda: now[0])
    with sqlite3.connect(tmp_path / "judges.sqlite", timeout=60) as connection:
        connection.execute("UPDATE owners SET kernel = 'of another machine'")
    cache = Cache(tmp_path / "judges.sqlite")
    for beat in range(5):
        with sqlite3.connect(tmp_path / "judges.sqlite", timeout=60) as connection:
            connection.execute("UPDATE owners SET beat = ?", (100 + beat,))
        assert not cache.claim("k")
        now[0] += owners.LEASE - 1
    claimant.kill()
    claimant.wait()
    assert not cache.claim("k")
    now[0] += owners.LEASE + 1
    assert cache.claim("k")


def test_a_call_that_a_killed_process_was_making_stays_on_the_bill(cache):
    judge = Judge("openai", "m", "m")
    key = answer_key(judge, QUESTION)
    lost = cache.begin(key, judge, QUESTION, (900, 64))
    assert cache.used([key, key]) == (1, 900, 64)
    assert cache.bodies(key) == []
    kept = cache.begin(key, judge, QUESTION, (900, 64))
    cache.keep(kept, "7")
    cache.count(kept, (100, 4))
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
    cache.keep(cache.begin(key, judge, QUESTION, (1, 1)), json.dumps({"choices": [{"message": {"content": "seven"}}]}))
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
        Cache(None if kind == "user" else pathlib.Path(given))


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
