"""The real SDKs against local servers: what they send, what comes back, what goes wrong."""

import threading
import time
from email.utils import formatdate

import pytest

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.judge.ask import serves_another
from lm_eval_lora_drop.judge.score import Item, score
from testing.judge_servers import PROVIDERS, Say, items, number_of, score_json

ITEM = Item("summary", "Ann: Are you coming?\nBob: At six.", "Bob comes at six.", "Bob is coming at 6.")


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_structured_score_with_all_texts_in_the_prompt(provider, serve, panel_of, cache):
    server = serve(lambda request, nth: Say(score_json(7), model="judge-1-2025-01-31"))
    found = score(panel_of(server.judge(provider)), [ITEM], cache)
    assert found.by_judge == {f"{provider}-judge": [7]}
    assert found.mean == 70.0
    (request,) = server.requests
    assert request.structured
    assert all(text in request.prompt for text in (ITEM.source, ITEM.reference, ITEM.prediction))
    judged = found.to_json()["judges"][f"{provider}-judge"]
    assert judged["served_models"] == {"judge-1-2025-01-31": 1}
    assert judged["served_another_model"] == []
    assert found.answers.bill.dollars == pytest.approx((100 * 1.0 + 4 * 10.0) / 1e6)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_another_model_than_asked_for_is_flagged(provider, serve, panel_of, cache):
    server = serve(lambda request, nth: Say(score_json(7), model="cheaper-mini"))
    found = score(panel_of(server.judge(provider)), [ITEM], cache)
    assert found.to_json()["judges"][f"{provider}-judge"]["served_another_model"] == ["cheaper-mini"]
    assert "answered by cheaper-mini" in found.warnings()[0]
    assert score(panel_of(server.judge(provider)), [ITEM], cache).warnings() == found.warnings()
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("asked", "served", "another"),
    [
        ("gpt-4o", "gpt-4o-2024-08-06", False),
        ("claude-haiku-4-5", "claude-haiku-4-5-20251001", False),
        ("gemini-1.5-pro", "models/gemini-1.5-pro-002", False),
        ("gpt-4o", "gpt-4o-mini", True),
        ("gpt-4o", "gpt-4o-mini-2024-07-18", True),
        ("claude-3-5-sonnet-latest", "claude-3-5-sonnet-20241022", False),
        ("claude-haiku-4-5", "claude-haiku-4-5", False),
        ("anything", None, False),
    ],
)
def test_a_dated_snapshot_is_the_same_model(asked, served, another):
    assert serves_another(asked, served) is another


SAID = {"8/10": 8, "I'd say 7": 7, "11": None, "-1": None, "7.5": None, "８": 8, "１０": 10, "": None}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_free_text(provider, serve, panel_of, cache):
    server = serve(lambda request, nth: Say(list(SAID)[number_of(request)]))
    # What is no verdict is asked for once more, and once only; what is one never again.
    for _ in range(2):
        found = score(panel_of(server.judge(provider, structured=False)), items(len(SAID)), cache)
        assert found.by_judge[f"{provider}-judge"] == list(SAID.values())
        assert len(server.requests) == sum(1 if value is not None else 2 for value in SAID.values())
    assert not server.requests[0].structured


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_second_answer_counts_where_the_first_cannot_be_read(provider, serve, panel_of, cache):
    server = serve(lambda request, nth: Say(score_json(3) if "could not be read" in request.prompt else "nice text"))
    assert score(panel_of(server.judge(provider)), [ITEM], cache).by_judge[f"{provider}-judge"] == [3]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_refusal_is_no_verdict_even_with_a_number_in_it(provider, serve, panel_of, cache):
    server = serve(lambda request, nth: Say("I cannot judge this. 0", refusal=True))
    found = score(panel_of(server.judge(provider, structured=False)), [ITEM], cache)
    assert found.by_judge[f"{provider}-judge"] == [None]
    assert found.to_json()["judges"][f"{provider}-judge"]["without_verdict"] == {"refused": 1}
    assert len(server.requests) == 2


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_passing_fault_costs_no_verdict(provider, serve, panel_of, cache):
    faults = [Say(status=status) for status in (429, 500, 529, 503)]
    faults += [Say(fault=fault) for fault in ("drop", "half", "malformed")]
    server = serve(lambda request, nth: faults[number_of(request)] if nth == 1 else Say(score_json(9)))
    found = score(panel_of(server.judge(provider)), items(len(faults)), cache)
    assert found.by_judge[f"{provider}-judge"] == [9] * len(faults)
    assert len(server.requests) == 2 * len(faults)
    assert list(server.billed.values()) == [1] * len(faults)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_time_out_is_tried_again(provider, serve, panel_of, cache):
    server = serve(lambda request, nth: Say(fault="hang") if nth == 1 else Say(score_json(9)))
    found = score(panel_of(server.judge(provider), timeout=0.8), [ITEM], cache)
    assert found.by_judge[f"{provider}-judge"] == [9]
    assert found.answers.bill.perhaps >= 1


@pytest.mark.parametrize(("provider", "form"), list(zip(PROVIDERS, ("seconds", "date", "seconds"), strict=True)))
def test_retry_after_is_honoured_by_all_calls_to_that_server(provider, form, serve, panel_of, cache):
    refused = threading.Event()

    def behaviour(request, nth):
        if not refused.is_set():
            refused.set()
            wait = "1" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)
            return Say(status=429, headers={"Retry-After": wait})
        return Say(score_json(5))

    server = serve(behaviour)
    found = score(panel_of(server.judge(provider), concurrency={provider: 1}), items(3), cache)
    assert found.by_judge[f"{provider}-judge"] == [5, 5, 5]
    assert all(request.time - server.requests[0].time >= 0.95 for request in server.requests[1:])


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_wrong_key_stops_the_judge_after_the_calls_under_way(provider, serve, panel_of, cache):
    server = serve(lambda request, nth: Say(status=401))
    found = score(panel_of(server.judge(provider), concurrency={provider: 2}), items(30), cache)
    assert found.by_judge[f"{provider}-judge"] == [None] * 30
    assert len(server.requests) <= 2
    assert "HTTP 401" in found.warnings()[0]


def test_a_wait_longer_than_allowed_is_not_waited_for(serve, panel_of, cache):
    server = serve(lambda request, nth: Say(status=429, headers={"Retry-After": "3600"}))
    found = score(panel_of(server.judge("openai")), [ITEM], cache)
    assert found.by_judge == {"openai-judge": [None]}
    assert len(server.requests) == 1


def test_a_dead_server_is_given_up(panel_of, cache, serve):
    server = serve(lambda request, nth: Say(status=500))
    found = score(panel_of(server.judge("openai"), attempts=2), items(60), cache)
    assert found.verdicts == 0
    assert len(server.requests) < 60
    assert "questions in a row without an answer" in found.warnings()[0]


def test_one_failing_judge_leaves_the_others_alone(serve, panel_of, cache):
    server = serve(lambda request, nth: Say(status=404) if request.provider == "google" else Say(score_json(6)))
    found = score(panel_of(*map(server.judge, PROVIDERS)), items(5), cache)
    assert found.by_judge["google-judge"] == [None] * 5
    assert found.by_judge["openai-judge"] == found.by_judge["anthropic-judge"] == [6] * 5
    assert found.mean == 60.0
    assert found.verdicts == 10


def test_calls_at_once_stay_below_the_limit_of_the_provider(serve, panel_of, cache):
    server = serve(lambda request, nth: time.sleep(0.03) or Say(score_json(5)))
    score(panel_of(server.judge("openai"), concurrency={"openai": 3}), items(20), cache)
    assert server.most_active == 3


def test_a_cap_needs_prices(serve, panel_of, cache):
    server = serve(lambda request, nth: Say(score_json(4)))
    with pytest.raises(ArgumentError, match="set `price` of openai-judge"):
        score(panel_of(server.judge("openai", price=None), max_spend=1), [ITEM], cache)
    assert server.requests == []


def test_an_option_that_the_installed_sdk_does_not_take_is_refused_before_any_call(serve, panel_of, cache):
    server = serve(lambda request, nth: Say(score_json(4)))
    for provider, option in (("anthropic", "temperature"), ("openai", "temprature"), ("google", "top_q")):
        with pytest.raises(ArgumentError, match=f"takes no option {option}"):
            score(panel_of(server.judge(provider, options={option: 0})), [ITEM], cache)
    assert server.requests == []


def test_options_reach_the_provider(serve, panel_of, cache):
    server = serve(lambda request, nth: Say(score_json(4)))
    judges = [
        server.judge("openai", options={"temperature": 0, "reasoning_effort": "none"}),
        server.judge("anthropic", options={"output_config": {"effort": "low"}}),
        server.judge("google", options={"thinking_config": {"thinking_budget": 0}}),
    ]
    score(panel_of(*judges), [ITEM], cache)
    sent = {request.provider: request.body for request in server.requests}
    assert sent["openai"]["temperature"] == 0
    assert sent["openai"]["reasoning_effort"] == "none"
    assert sent["anthropic"]["output_config"]["effort"] == "low"
    assert sent["google"]["generationConfig"]["thinkingConfig"] in ({"thinkingBudget": 0}, {"thinking_budget": 0})


def test_a_judge_within_a_running_event_loop(serve, panel_of, cache):
    import asyncio

    server = serve(lambda request, nth: Say(score_json(4)))

    async def notebook():
        return score(panel_of(server.judge("openai")), [ITEM], cache)

    assert asyncio.run(notebook()).mean == 40.0
