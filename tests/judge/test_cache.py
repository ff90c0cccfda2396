"""The cache under several processes, and a claim that outlives nobody."""

import json
import logging
import multiprocessing
import subprocess
import sys
import traceback

import pytest

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.judge.cache import Cache, Reply, answer_key
from lm_eval_lora_drop.judge.panel import Judge, parse_panel
from lm_eval_lora_drop.judge.providers import CallError, open_provider
from lm_eval_lora_drop.judge.questions import score_question
from lm_eval_lora_drop.judge.score import Item, score
from tests.judge.servers import KEYS, Say, score_json

QUESTION = score_question("summary", "a", "b", "c", structured=True)


def _judge_all(data, path, start, results):
    start.wait()
    items = [Item("summary", "s", "r", f"prediction {i}") for i in range(40)]
    found = score(parse_panel(data, "x"), items, Cache(path))
    results.put((found.by_judge["openai-judge"], found.answers.bill.calls))


def test_four_processes_pay_for_an_answer_once(serve, tmp_path):
    server = serve(lambda request, nth: Say(score_json(len(request.prompt) % 11)))
    data = {"judges": [server.judge("openai")], "backoff": 0.01}
    context = multiprocessing.get_context("spawn")
    start, results = context.Event(), context.Queue()
    arguments = (data, tmp_path / "shared.sqlite", start, results)
    processes = [context.Process(target=_judge_all, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert all(scores == found[0][0] for scores, _ in found)
    assert sum(calls for _, calls in found) == len(server.requests) == 40


def test_a_claim_ends_with_its_process(tmp_path):
    path = tmp_path / "judges.sqlite"
    code = (
        "import pathlib; from lm_eval_lora_drop.judge.cache import Cache;"
        f"print(Cache(pathlib.Path({str(path)!r})).claim('k', 1e6))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"
    cache = Cache(path)
    assert cache.claim("k", 60)
    assert not Cache(path).claim("k", 60)
    cache.release("k")
    assert Cache(path).claim("k", 0)
    assert Cache(path).claim("k", 60)  # its time is over


def test_answers_of_different_models_are_kept_apart_and_the_first_is_found(cache):
    judge = Judge("openai", "m", "m")
    key = answer_key(judge, QUESTION)
    for model, text in (("m-1", "3"), ("m-2", "9"), ("m-1", "5")):
        cache.put(key, judge, QUESTION, Reply(text, model, "stop", 1, 1, "{}"))
    assert cache.get(key) == Reply("3", "m-1", "stop", 1, 1, "{}")


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
    cache.put(
        answer_key(judge, QUESTION), judge, QUESTION, Reply("about seven", "m", "stop", 1, 1, json.dumps({"raw": 1}))
    )
    panel = parse_panel({"judges": [{"provider": "openai", "model": "m"}]}, "x")
    assert score(panel, [Item("summary", "a", "b", "c")], cache, offline=True).by_judge == {"m": [None]}
    with cache._open() as connection:
        connection.execute("UPDATE answers SET text = '7'")  # what a reader that knows number words would see
    assert score(panel, [Item("summary", "a", "b", "c")], cache, offline=True).by_judge == {"m": [7]}


def test_a_file_that_is_no_cache_is_named(tmp_path):
    file = tmp_path / "judges.sqlite"
    file.write_text("no database, this is")
    with pytest.raises(ArgumentError, match="LORA_DROP_JUDGE_CACHE"):
        Cache(file)


@pytest.mark.parametrize("provider", ["openai", "anthropic", "google"])
@pytest.mark.parametrize("fault", ["status", "drop", "malformed"])
def test_no_key_in_exceptions_and_debug_logs(provider, fault, serve, caplog):
    import asyncio

    said = f"you sent {KEYS[provider]}"
    server = serve(lambda request, nth: Say(status=400, error=said) if fault == "status" else Say(fault=fault))
    data = {"judges": [server.judge(provider)], "backoff": 0.01, "attempts": 1}

    async def call():
        client = open_provider(parse_panel(data, "x").judges[0], 10.0)
        try:
            await client.ask(QUESTION)
        finally:
            await client.close()

    with caplog.at_level(logging.DEBUG), pytest.raises(CallError) as caught:
        asyncio.run(call())
    shown = "".join(traceback.format_exception(caught.value))
    assert KEYS[provider] not in shown
    assert KEYS[provider] not in caplog.text
    assert caught.value.__suppress_context__
