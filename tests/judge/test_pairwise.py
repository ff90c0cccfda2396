"""`lora-drop judge pairwise` against servers with a bias or a taste."""

import json
import re

import pytest
import yaml

from lm_eval_lora_drop.commands.main import main
from testing.judge_servers import Say
from testing.judged_runs import write_judged

LONG = ["a long text " * n for n in (1, 2, 3, 4, 5)]
SHORT = ["brief"] * 5


def shown(request):
    """The texts A and B as the judge sees them."""
    return [re.search(f"<({name}-[0-9a-f]{{16}})>\n(.*)\n</\\1>", request.prompt, re.DOTALL)[2] for name in "AB"]


def longer(request, nth):
    first, second = map(len, shown(request))
    return Say(json.dumps({"better": "A" if first > second else "B" if second > first else "tie"}))


@pytest.fixture
def compare(tmp_path, capsys):
    """Run the command on two systems' outputs; gives what it writes and what it prints."""

    def run(server, first, second, *arguments, judges=("openai",)):
        panel = tmp_path / "panel.yaml"
        panel.write_text(yaml.safe_dump({"judges": [server.judge(name) for name in judges], "backoff": 0.01}))
        one = write_judged(tmp_path / "one", first, name="one")
        two = write_judged(tmp_path / "two", second, name="two")
        file = tmp_path / "found.json"
        command = ["judge", "pairwise", str(one), str(two), "--panel", str(panel), "--json", str(file), *arguments]
        assert main(command) == 0
        return json.loads(file.read_text()) if file.exists() else None, capsys.readouterr().out

    return run


def test_a_judge_that_sees_positions_only_decides_nothing(serve, compare):
    server = serve(lambda request, nth: Say('{"better": "A"}'))
    found, out = compare(server, LONG, SHORT, judges=("openai", "anthropic", "google"))
    for row in (*found["judges"].values(), found["panel"]):
        assert row["win_rate"] == 0.5
        assert row["position_bias_rate"] == 1.0
        assert row["ties"] == 5
        assert row["sign_test_p"] is None
    assert "50.0%" in out
    assert "position bias 100%" in out
    assert len(server.requests) == 30


def test_a_taste_for_length_gives_the_rate_that_the_texts_imply(serve, compare):
    # Won, won, lost, of equal length, identical (which is not even asked).
    server = serve(longer)
    first, second = ["xxxx", "xxx", "x", "abc", "same"], ["yy", "yy", "yyyy", "def", "same"]
    found, out = compare(server, first, second)
    row = found["judges"]["openai-judge"]
    assert (row["wins"], row["losses"], row["ties"]) == (2, 1, 2)
    assert row["win_rate"] == pytest.approx((2 + 2 / 2) / 5)
    assert row["position_bias_rate"] == 0.0
    assert row["sign_test_p"] == pytest.approx(1.0)
    assert len(server.requests) == 8
    assert all(sorted(shown(request)) != ["same", "same"] for request in server.requests)
    assert "one against two" in out
    # Asked again, the answers are there.
    compare(server, first, second)
    assert len(server.requests) == 8


def test_the_other_order_of_systems_gives_the_other_rate(serve, compare):
    server = serve(longer)
    assert compare(server, LONG, SHORT)[0]["panel"]["win_rate"] == 1.0
    assert compare(server, SHORT, LONG)[0]["panel"]["win_rate"] == 0.0
    assert max(server.billed.values()) == 1


def test_the_majority_of_the_panel_decides(serve, compare):
    def behaviour(request, nth):
        return longer(request, nth) if request.provider != "google" else Say('{"better": "B"}')

    found, _ = compare(serve(behaviour), LONG, SHORT, judges=("openai", "anthropic", "google"))
    assert found["judges"]["google-judge"]["position_bias_rate"] == 1.0
    assert found["panel"]["win_rate"] == 1.0
    assert found["panel"]["position_bias_rate"] == pytest.approx(1 / 3)


def test_a_pair_without_verdict_is_listed_and_decides_nothing(serve, compare):
    server = serve(lambda request, nth: Say("hm") if LONG[0].strip() in shown(request) else longer(request, nth))
    found, out = compare(server, LONG, SHORT)
    assert found["panel"]["without_verdict"] == 1
    assert found["panel"]["wins"] == 4
    assert "1 without verdict" in out


def test_a_dry_run_asks_nobody(serve, compare):
    server = serve(longer)
    found, out = compare(server, LONG, SHORT, "--dry-run")
    assert found is None
    assert "10 calls, 0 in the cache" in out
    assert server.requests == []
