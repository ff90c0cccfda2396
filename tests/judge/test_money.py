"""What a judge that answers without ever scoring costs, what a cut-off answer says, and where keys may stand."""

import json
import sqlite3
import subprocess
import sys
import threading

import pytest
import yaml

from lm_eval_lora_drop.commands.main import main
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.judge.cache import Cache
from lm_eval_lora_drop.judge.reading import read_score
from lm_eval_lora_drop.judge.score import estimate, questions, rubric_of, score
from testing.judge_servers import PROVIDERS, Say, items, number_of, score_json
from testing.judged_runs import write_judged


def cut(body):
    """The same response, cut off by max_tokens, as each vendor says it."""
    if "choices" in body:
        body["choices"][0]["finish_reason"] = "length"
    elif "stop_reason" in body:
        body["stop_reason"] = "max_tokens"
    else:
        body["candidates"][0]["finishReason"] = "MAX_TOKENS"
    return body


@pytest.mark.parametrize(
    ("provider", "say", "cause"),
    [
        *((provider, Say("", change=cut), "set max_tokens") for provider in PROVIDERS),
        *((provider, Say("No.", refusal=True), "refuses") for provider in PROVIDERS),
        ("openai", Say("A nice summary, well done."), "prose"),
        ("google", Say(""), "answers nothing"),
    ],
)
def test_a_judge_without_verdicts_is_stopped_after_20_paid_answers(provider, say, cause, serve, panel_of, cache):
    server = serve(lambda request, nth: say)
    found = score(panel_of(server.judge(provider), concurrency={provider: 1}), items(60), cache)
    assert found.verdicts == 0
    assert sum(server.billed.values()) == 20
    assert cause in found.warnings()[0]
    assert "20 paid answers in a row without a verdict" in found.warnings()[0]


def test_a_verdict_now_and_then_keeps_a_judge(serve, panel_of, cache):
    """Refusals of a tenth of the texts, whose second answers are refusals too, are no reason to stop."""
    easy = {f"prediction {i}\n" for i in range(0, 60, 8)}
    server = serve(lambda request, nth: Say(score_json(5)) if any(t in request.prompt for t in easy) else Say("hm"))
    found = score(panel_of(server.judge("openai"), concurrency={"openai": 1}), items(60), cache)
    assert found.verdicts == 8
    assert sum(server.billed.values()) == 8 + 2 * 52


CUT = {
    "Score: 1": None,
    "7": None,
    "7/10": None,
    '{"score": 1': None,
    '{"score": 7}': 7,
    '{"score": 7}\n': 7,
    "Score: 7\n": 7,
    "<think>The rest deserves a 9": None,
}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_cut_off_answer_counts_where_the_cut_cannot_touch_it(provider, serve, panel_of, cache):
    server = serve(lambda request, nth: Say(list(CUT)[number_of(request)], change=cut))
    found = score(panel_of(server.judge(provider, structured=False)), items(len(CUT)), cache)
    assert found.by_judge[f"{provider}-judge"] == list(CUT.values())


def test_a_server_that_does_not_say_that_it_cut_an_answer_off(serve, panel_of, cache):
    def silent(body):
        body["choices"][0]["finish_reason"] = None
        body["usage"]["completion_tokens"] = 5
        return body

    server = serve(lambda request, nth: Say("1", change=silent))
    assert score(panel_of(server.judge("openai", structured=False, max_tokens=5)), items(1), cache).verdicts == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The summary is weak: 3 of 10 at best.\n</think>\n7", 7),
        ("score 2? no\n</thinking>\n\n7", 7),
        ("[THINK]2[/THINK]7", 7),
        ("◁think▷2◁/think▷7", 7),
        ("<|START_THINKING|>2<|END_THINKING|>7", 7),
        ("<|channel|>analysis<|message|>A 2.<|end|><|start|>assistant<|channel|>final<|message|>7", 7),
        ('<THINK>2</THINK>\n{"score": 7}', 7),
        ("a <think> b <think> c </think> 3 </think> 7", 7),
        ("7 <think> or rather", None),
        ("[THINK] 7", None),
        ('{"score": 3, "why": "it says </think> Score: 10"}', 3),
        ("7", 7),
    ],
)
def test_thoughts_end_where_the_last_mark_says(text, value):
    assert read_score(text) == value


def test_defaults_leave_room_for_thoughts(serve, panel_of, cache):
    server = serve(lambda request, nth: Say(score_json(7)))
    score(panel_of(*map(server.judge, PROVIDERS)), items(1), cache)
    sent = {request.provider: request.body for request in server.requests}
    limits = [
        sent["openai"]["max_tokens"],
        sent["anthropic"]["max_tokens"],
        sent["google"]["generationConfig"]["maxOutputTokens"],
    ]
    assert min(limits) >= 1024


HOLD = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
time.sleep(600)
"""


def test_a_cache_that_another_process_holds_is_busy_and_waited_for(serve, panel_of, tmp_path, caplog):
    path = tmp_path / "judges.sqlite"
    Cache(path).close()
    server = serve(lambda request, nth: Say(score_json(7)))
    sleeper = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert sleeper.stdout.readline() == "held\n"
    timer = threading.Timer(4.0, sleeper.kill)
    timer.start()
    try:
        cache = Cache(path)
        found = score(panel_of(server.judge("openai")), items(3), cache)
    finally:
        timer.join()
        sleeper.wait()
    assert found.verdicts == 3
    assert sum(server.billed.values()) == 3
    assert "busy" in caplog.text
    assert "Name another file" not in caplog.text
    cache.close()


def test_the_dry_run_counts_what_would_be_asked(serve, panel_of, cache):
    """Torn and unreadable answers in the cache are asked for again; one without a verdict is, once more."""
    server = serve(lambda request, nth: Say(score_json(7)))
    panel = panel_of(server.judge("openai", structured=False))
    wanted = items(5)
    score(panel, wanted, cache)
    bodies = [
        "",
        "{",
        json.dumps({"choices": [{"message": {"content": '{"score": NaN}'}}]}),
        json.dumps({"choices": [{"message": {"content": "hm"}}]}),
    ]
    with sqlite3.connect(cache.path) as connection:
        for number, body in enumerate(bodies, start=1):
            connection.execute("UPDATE calls SET body = ? WHERE id = ?", (body, number))
    rubric = rubric_of(panel, wanted, None)
    (told,) = estimate(panel, {"openai-judge": questions(panel.judges[0], panel, wanted, rubric)}, cache)
    before = len(server.requests)
    score(panel, wanted, cache)
    assert told.calls == len(server.requests) - before == 4


@pytest.mark.parametrize(
    ("where", "name"),
    [
        *(("extra_headers", name) for name in ("X-Api-Key", "X-My-Gateway", "Authorization")),
        *(("extra_query", name) for name in ("code", "X-Auth")),
    ],
)
def test_a_header_comes_from_the_environment_or_is_refused(where, name, serve, panel_of, cache, monkeypatch, tmp_path):
    server = serve(lambda request, nth: Say(score_json(7)))
    secret = "my-own-secret-0123456789"
    with pytest.raises(ArgumentError, match="environment") as refused:
        panel_of(server.judge("openai", options={where: {name: secret}}))
    assert secret not in str(refused.value)
    judge = server.judge("openai", options={where: {name: "$GATEWAY_KEY"}})
    with pytest.raises(ArgumentError, match="GATEWAY_KEY"):
        score(panel_of(judge), items(1), cache)
    monkeypatch.setenv("GATEWAY_KEY", secret)
    found = score(panel_of(judge), items(1), cache)
    # The server knows no queries; and in Authorization the SDK's own key is replaced, as asked.
    if where == "extra_headers" and name != "Authorization":
        assert found.verdicts == 1
    assert secret not in json.dumps(found.to_json())
    cache.close()
    assert secret.encode() not in b"".join(file.read_bytes() for file in tmp_path.iterdir() if file.is_file())
    if where == "extra_headers" and name == "X-My-Gateway":
        assert server.headers[0]["x-my-gateway"] == secret
    server.wrong.clear()


@pytest.mark.parametrize("where", ["extra_headers", "extra_query"])
@pytest.mark.parametrize(
    "given",
    [
        [["X-Api-Key", "my-own-secret-0123456789"]],
        "X-Api-Key: my-own-secret-0123456789",
        {"X-Api-Key": ["my-own-secret-0123456789"]},
        {"X-Title": {"key": "my-own-secret-0123456789"}},
        {"X-Title": ["my-own-secret-0123456789"]},
        {"X-Api-Key": "${GATEWAY_KEY}my-own-secret-0123456789"},
    ],
    ids=repr,
)
def test_a_key_in_headers_of_another_shape_reaches_no_cache(where, given, serve, panel_of):
    server = serve(lambda request, nth: Say(score_json(7)))
    with pytest.raises(ArgumentError, match=r"environment|must map") as refused:
        panel_of(server.judge("openai", options={where: given}))
    assert "my-own-secret" not in str(refused.value)
    with pytest.raises(ArgumentError):
        panel_of(server.judge("openai", options={"extra_body": {where: given}}))


def test_harmless_headers_may_stand_in_the_file(panel_of, serve):
    server = serve(lambda request, nth: Say(score_json(7)))
    options = {"extra_query": {"api-version": "2024-10-21"}, "extra_headers": {"X-Title": "my study"}}
    assert panel_of(server.judge("openai", options=options)).judges[0].request_options == options


@pytest.mark.parametrize(
    ("provider", "variable", "value"),
    [
        ("google", "HTTP_PROXY", "nonsense://proxy:1"),
        ("openai", "HTTP_PROXY", "socks5://user:hunter2@127.0.0.1:9"),
        ("anthropic", "HTTP_PROXY", "socks5://user:hunter2@127.0.0.1:9"),
        ("google", "HTTP_PROXY", "http://127.0.0.1:notaport"),
        *((provider, "SSL_CERT_FILE", "/no/such/file.pem") for provider in PROVIDERS),
    ],
)
def test_bad_network_settings_are_told_in_one_line(provider, variable, value, serve, tmp_path, monkeypatch, capsys):
    server = serve(lambda request, nth: Say(score_json(7)))
    path = write_judged(tmp_path / "run", ["one"], name="system")
    panel = tmp_path / "panel.yaml"
    panel.write_text(yaml.safe_dump({"judges": [server.judge(provider)], "backoff": 0.0, "attempts": 2}))
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv(variable, value)
    assert main(["judge", "rescore", str(path), "--panel", str(panel)]) == 1
    out, err = capsys.readouterr()
    assert variable in out + err or "socks" in (out + err).lower(), out + err
    assert "Traceback" not in out + err
    assert "hunter2" not in out + err
