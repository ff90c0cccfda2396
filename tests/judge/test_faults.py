"""Responses that no specification allows, through the real SDKs: none stops a run, none that says a score is lost."""

import functools
import gzip
import json
import sqlite3

import pytest

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.judge.panel import parse_panel
from lm_eval_lora_drop.judge.score import Item, score
from testing.judge_servers import KEYS, PROVIDERS, Say, items, number_of, score_json

ITEM = Item("summary", "Ann: Are you coming?\nBob: At six.", "Bob comes at six.", "Bob is coming at 6.")
USAGES = [None, "many", -5, 1e30, 10**30, float("nan"), [], {"prompt_tokens": "100"}, {"prompt_tokens": -1}]


def message_of(body):
    return body["choices"][0]["message"]


def set_usage(body, value):
    name = "usageMetadata" if "usageMetadata" in body else "usage"
    body.pop(name)
    if value is not None:
        body[name] = value
    return body


def set_counts(body, value):
    """Both token counts of any provider's response."""
    usage = body.get("usage") or body["usageMetadata"]
    for name in ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"):
        if name in usage:
            usage[name] = value
    for name in ("promptTokenCount", "candidatesTokenCount"):
        if name in usage:
            usage[name] = value
    return body


def change_openai(**fields):
    def change(body):
        message_of(body).update(fields)
        return body

    return change


FORMS = [
    change_openai(content=[{"type": "text", "text": '{"score": '}, {"type": "text", "text": "7}"}]),
    change_openai(content=["7"]),
    change_openai(content=[{"type": "reasoning", "text": "3"}, {"type": "text", "text": "7"}, 5, None]),
    change_openai(content=7),
    change_openai(content={"score": 7}),
    change_openai(content={"type": "text", "text": "7"}),
    change_openai(refusal=5),
    change_openai(refusal=False, role=3, tool_calls="x"),
    lambda body: {**body, "model": 5, "id": None, "created": "x", "object": [], "choices": body["choices"] * 2},
    lambda body: {**body, "logprobs": float("nan"), "x": float("inf")},
    lambda body: {"choices": [{"message": {"content": "7"}, "finish_reason": {"a": 1}}]},
]


def test_an_openai_shaped_answer_in_another_form_is_read_and_bought_once(serve, panel_of, cache):
    server = serve(lambda request, nth: Say(score_json(7), change=FORMS[number_of(request)]))
    found = score(panel_of(server.judge("openai")), items(len(FORMS)), cache)
    assert found.by_judge == {"openai-judge": [7] * len(FORMS)}
    assert len(server.requests) == len(FORMS)
    again = score(panel_of(server.judge("openai")), items(len(FORMS)), cache, offline=True)
    assert again.by_judge == found.by_judge


@pytest.mark.parametrize("change", [set_usage, set_counts])
@pytest.mark.parametrize(("usage", "provider"), list(zip(USAGES, PROVIDERS * 3, strict=True)), ids=str)
def test_no_usage_costs_an_answer_or_the_cap(provider, usage, change, serve, panel_of, cache):
    server = serve(lambda request, nth: Say(score_json(7), change=lambda body: change(body, usage)))
    judge = server.judge(provider, max_tokens=4)
    found = score(panel_of(judge, max_spend=0.01), items(40), cache)
    assert 1 <= len(server.requests) <= 20  # a call that says nothing true costs what it can cost at most, some $0.001
    assert found.verdicts == len(server.requests)
    assert 0 < found.answers.bill.dollars <= 0.01
    assert found.answers.bill.capped


TORN = ['{"score": NaN}', '{"score": 1e999}', '{"score": ' + "9" * 5000 + "}", '{"score": 7', "7" * 150_000]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_torn_answer_is_asked_for_again_and_never_crashes_a_rerun(provider, serve, panel_of, cache):
    server = serve(
        lambda request, nth: Say(score_json(7) if "could not be read" in request.prompt else TORN[number_of(request)])
    )
    for _ in range(2):
        found = score(panel_of(server.judge(provider)), items(len(TORN)), cache)
        assert found.by_judge[f"{provider}-judge"] == [7] * len(TORN)
        assert len(server.requests) == 2 * len(TORN)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_judge_that_only_ever_tears_its_answers_is_not_asked_for_ever(provider, serve, panel_of, cache):
    server = serve(lambda request, nth: Say('{"score": NaN}'))
    for _ in range(3):
        found = score(panel_of(server.judge(provider), attempts=3), items(2), cache)
        assert found.by_judge[f"{provider}-judge"] == [None, None]
        assert found.to_json()["judges"][f"{provider}-judge"]["without_verdict"] == {"no verdict in the answer": 2}
        assert len(server.requests) == 4


NO_ANSWERS = [
    b"",
    b"null",
    b"7",
    b"[]",
    b"{}",
    b"<html>welcome to the airport</html>",
    b'{"error": {"message": "overloaded", "code": 529}}',
    b'{"choices": []}',
    b'{"choices": [null], "type": "error", "candidates": [5]}',
    b'{"choices": {"0": 1}}',
    b"\xff\xfe\x00{",
    b"[" * 100_000,
    b'{"id": ' + b"9" * 5000 + b"}",
    b'{"choices": [{"message": "7"}]}',
]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_body_that_is_no_answer_is_a_fault_like_any_other(provider, serve, panel_of, cache):
    server = serve(lambda request, nth: Say(body=NO_ANSWERS[number_of(request)]) if nth == 1 else Say(score_json(9)))
    found = score(panel_of(server.judge(provider)), items(len(NO_ANSWERS)), cache)
    assert found.by_judge[f"{provider}-judge"] == [9] * len(NO_ANSWERS)
    assert len(server.requests) == 2 * len(NO_ANSWERS)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_response_is_in_the_file_before_it_is_read(provider, serve, panel_of, cache):
    server = serve(lambda request, nth: Say(body=b"no answer at all, this is"))
    score(panel_of(server.judge(provider), attempts=2), [ITEM], cache)
    with sqlite3.connect(cache.path) as connection:
        rows = connection.execute("SELECT body FROM calls").fetchall()
    assert rows == [("no answer at all, this is",)] * 2


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_slow_drip_ends_at_the_time_out(provider, serve, panel_of, cache):
    server = serve(lambda request, nth: Say(score_json(9), fault="drip" if nth == 1 else ""))
    found = score(panel_of(server.judge(provider), timeout=1.0), [ITEM], cache)
    assert found.by_judge[f"{provider}-judge"] == [9]
    assert found.answers.bill.perhaps == 1
    assert len(server.requests) == 2


@functools.cache
def bomb():
    return gzip.compress(b" " * 50_000_000, compresslevel=1)


@pytest.mark.parametrize(
    ("provider", "encoding"), [("openai", "gzip"), ("anthropic", "gzip, gzip"), ("google", "gzip"), ("google", "")]
)
def test_an_endless_body_is_not_kept_in_memory(provider, encoding, serve, panel_of, cache):
    long = b'{"a": "' + b" " * 3_000_000 + b'"}'
    body = {"": long, "gzip": bomb(), "gzip, gzip": gzip.compress(bomb())}[encoding]
    headers = {"Content-Encoding": encoding} if encoding else {}
    server = serve(lambda request, nth: Say(body=body, headers=headers) if nth == 1 else Say(score_json(9)))
    found = score(panel_of(server.judge(provider)), [ITEM], cache)
    assert found.by_judge[f"{provider}-judge"] == [9]
    with sqlite3.connect(cache.path) as connection:
        assert connection.execute("SELECT max(length(body)) FROM calls").fetchone()[0] < 10_000


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_redirect_takes_the_key_nowhere(provider, serve, panel_of, cache):
    other = serve(lambda request, nth: Say(score_json(1)))
    server = serve(lambda request, nth: Say(status=307, headers={"Location": f"{other.url(provider)}/elsewhere"}))
    loop = serve(lambda request, nth: Say(status=308, headers={"Location": "/"}))
    for first in (server, loop):
        found = score(panel_of(first.judge(provider), attempts=2), [ITEM], cache)
        assert found.by_judge[f"{provider}-judge"] == [None]
        assert "redirect" in found.warnings()[0]
        assert len(first.requests) == 2
    assert other.requests == []


@pytest.mark.parametrize("value", ["nan", "inf", "1e999", "-5", "Fri, 99 Foo 99999999 99:99:99", "9" * 500, ""])
def test_no_retry_after_stops_a_run(value, serve, panel_of, cache):
    server = serve(
        lambda request, nth: Say(status=429, headers={"Retry-After": value}) if nth == 1 else Say(score_json(9))
    )
    found = score(panel_of(server.judge("openai"), max_wait=1), [ITEM], cache)
    endless = value in ("inf", "1e999", "9" * 500)
    assert found.by_judge["openai-judge"] == [None if endless else 9]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_server_of_ones_own_gets_no_key_that_was_not_meant_for_it(provider, serve, monkeypatch, tmp_path, cache):
    planted = {
        "OPENAI_ORG_ID": "org-planted",
        "OPENAI_PROJECT_ID": "proj-planted",
        "OPENAI_CUSTOM_HEADERS": "X-Mine: headers-planted",
        "OPENAI_ADMIN_KEY": "admin-planted",
        "ANTHROPIC_CUSTOM_HEADERS": "X-Mine: headers-planted",
        "ANTHROPIC_AUTH_TOKEN": "token-planted",
        "GOOGLE_API_KEY": "google-planted",
        "GOOGLE_CLOUD_PROJECT": "project-planted",
    }
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    server = serve(lambda request, nth: Say(score_json(7)))
    server.keys = dict.fromkeys(PROVIDERS, "none")
    judge = server.judge(provider, api_key_env=None)
    found = score(parse_panel({"judges": [judge], "backoff": 0.01}, "x"), [ITEM], cache)
    assert found.verdicts == 1
    sent = json.dumps(server.headers)
    assert not [secret for secret in (*planted.values(), *KEYS.values(), "planted") if secret in sent]


def test_a_server_that_wants_a_key_says_where_to_name_it(serve, panel_of, cache):
    server = serve(lambda request, nth: Say(status=401, error="who are you?"))
    server.keys = dict.fromkeys(PROVIDERS, "none")
    found = score(panel_of(server.judge("openai", api_key_env=None)), [ITEM], cache)
    assert "api_key_env" in found.warnings()[0]


def test_a_key_that_a_panel_names_must_be_there(panel_of, cache, serve, monkeypatch):
    monkeypatch.delenv("MY_SERVER_KEY", raising=False)
    server = serve(lambda request, nth: Say(score_json(7)))
    with pytest.raises(ArgumentError, match="MY_SERVER_KEY"):
        score(panel_of(server.judge("openai", api_key_env="MY_SERVER_KEY")), [ITEM], cache)
    monkeypatch.setenv("MY_SERVER_KEY", "two words\nand a line")
    with pytest.raises(ArgumentError, match="printable ASCII") as caught:
        score(panel_of(server.judge("openai", api_key_env="MY_SERVER_KEY")), [ITEM], cache)
    assert "two words" not in str(caught.value)
    assert server.requests == []


def test_a_full_disk_stops_before_the_next_call_and_loses_no_answer(serve, panel_of, cache):
    """SQLite's own limit on its pages gives the very error that a full disk gives."""
    server = serve(lambda request, nth: Say(score_json(7)))
    panel = panel_of(server.judge("openai"), concurrency={"openai": 2})
    score(panel, items(1), cache)
    (pages,) = cache._connection.execute("PRAGMA page_count").fetchone()
    cache._connection.execute(f"PRAGMA max_page_count = {pages + 3}")
    found = score(panel, items(60), cache)
    assert 1 < found.verdicts < 60
    assert found.verdicts == len(server.requests)  # what was paid is used
    assert "full" in found.warnings()[0]
    cache._connection.execute("PRAGMA max_page_count = 100000")
    before = len(server.requests)
    again = score(panel, items(60), cache)
    assert again.verdicts == 60
    assert len(server.requests) <= before + 60 - found.verdicts + 2  # the calls under way when it was full


def test_a_run_that_is_taken_up_again_adds_to_what_was_spent(serve, panel_of, cache):
    server = serve(lambda request, nth: Say(score_json(4)))
    judge = server.judge("openai", max_tokens=4)
    one = (100 * 1.0 + 4 * 10.0) / 1e6
    first = score(panel_of(judge, max_spend=0.003), items(100), cache)
    calls = len(server.requests)
    assert 0 < first.verdicts < 100
    assert first.answers.bill.capped
    assert any("spending cap" in warning for warning in first.warnings())
    assert first.answers.bill.dollars == pytest.approx(calls * one)
    assert calls * one <= 0.003
    same = score(panel_of(judge, max_spend=0.003), items(100), cache)
    assert len(server.requests) == calls
    assert same.to_json()["dollars"] == pytest.approx(calls * one)
    rest = score(panel_of(judge, max_spend=1), items(100), cache)
    assert rest.verdicts == 100
    assert rest.to_json()["dollars"] == pytest.approx(100 * one)
    assert rest.to_json()["dollars_of_this_run"] == pytest.approx((100 - calls) * one)
    assert max(server.billed.values()) == 1


@pytest.mark.parametrize("name", ["stderr", "Verdicts", "agreement", "panel", "a_stderr", "x" * 61, "...", ""])
def test_a_judge_cannot_take_the_name_of_another_result(name):
    with pytest.raises(ArgumentError, match="name"):
        parse_panel({"judges": [{"provider": "openai", "model": "m", "name": name}]}, "x")


@pytest.mark.parametrize("name", ["HF_TOKEN", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "CI_JOB_TOKEN"])
def test_another_tools_token_is_refused(name):
    with pytest.raises(ArgumentError, match="another tool's secret"):
        parse_panel({"judges": [{"provider": "openai", "model": "m", "api_key_env": name}]}, "x")
