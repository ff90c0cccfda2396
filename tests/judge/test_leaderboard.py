"""GPT-Scores from calls to tables: the real SDKs, local servers with the vendors' formats, and what a reader sees."""

import hashlib
import json
import re
from dataclasses import dataclass, field

import pytest
import yaml

from lm_eval_lora_drop.commands.main import main
from testing.judge_servers import Say, score_json
from testing.judged_runs import write_judged

PROVIDERS = ("openai", "anthropic", "google")
HARSHER = {"openai": 0, "anthropic": 2, "google": 4}
N = 21


@dataclass
class Day:
    """How the vendors are while one system is judged: `silent` decides by the text, `left` is the number of answers."""

    dead: str = ""
    left: int = 10**6
    silent: frozenset[str] = frozenset()
    version: str = "2026-01-01"
    panel: dict[str, object] = field(default_factory=dict)
    model: str = "judge-1"


@pytest.fixture
def judged(tmp_path, serve, monkeypatch):
    """Write a system of N outputs and have it judged on such a day; every day has a cache of its own."""
    today = [Day()]

    def behaviour(request, nth):
        day, text = today[0], re.search(r"<prediction-\w+>\n(.*?)\n</prediction", request.prompt, re.DOTALL)[1]
        if request.provider == day.dead or day.left <= 0:
            return Say(status=500)
        day.left -= 1
        if request.provider == "google" and text in day.silent:
            return Say("No.", refusal=True)
        quality = 5 + hashlib.sha256(text.encode()).digest()[0] % 6
        return Say(score_json(quality - HARSHER[request.provider]), model=f"{request.model}-{day.version}")

    server = serve(behaviour)

    def judge(name, day, outputs=None):
        today[0] = day
        monkeypatch.setenv("LORA_DROP_JUDGE_CACHE", str(tmp_path / f"{name}.sqlite"))
        panel = {"judges": [server.judge(p, model=day.model) for p in PROVIDERS], "backoff": 0.0, "attempts": 1}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**panel, **day.panel}))
        path = write_judged(tmp_path / "runs" / name, outputs or [f"output {i}" for i in range(N)], name=name)
        main(["judge", "rescore", str(path), "--panel", str(tmp_path / f"{name}.yaml")])
        return path

    return judge


def shown(out, system):
    """The leaderboard's line of a system; its settings follow further down."""
    return next(line for line in out.split("\n") if re.match(rf"\W*{system}\b", line))


def test_a_leaderboard_of_equal_systems_ranks_none_above_another(judged, tmp_path, capsys):
    """The same outputs for all: whatever differs between the cells is the vendors' doing."""
    silent = frozenset(f"output {i}" for i in range(0, N, 7))
    paths = {
        "A": judged("A", Day()),
        "down": judged("down", Day(dead="google")),
        "few": judged("few", Day(left=4, panel={"concurrency": dict.fromkeys(PROVIDERS, 1)})),
        "version": judged("version", Day(version="2026-06-01")),
        "other": judged("other", Day(model="judge-2")),
        "criteria": judged("criteria", Day(panel={"criteria": {"wit": "has wit"}})),
        "patchy": judged("patchy", Day(silent=silent)),
    }
    capsys.readouterr()
    arguments = ["leaderboard", *map(str, paths.values()), "--metric", "gpt_score"]
    assert main(arguments) == 0
    out, notes = capsys.readouterr()
    reasons = {
        "down": "no verdict of google-judge",
        "few": "all judges scored",
        "version": "models that answered",
        "other": "models or settings of judges",
        "criteria": "rubric",
    }
    for name, reason in reasons.items():
        assert "[" in shown(out, name), name
        assert re.search(rf"\b{name} is in brackets and not ranked: [^.]*{reason}", notes), notes
    cells = [re.findall(r"[\d.]+ ± [\d.]+", shown(out, name)) for name in ("A", "patchy")]
    assert cells[0] == cells[1] != []
    assert "[" not in shown(out, "A") + shown(out, "patchy")
    kept = N - len(silent)
    assert f"Means over the {kept} documents" in notes
    for name in ("down", "few", "version", "other", "criteria"):
        assert main(["compare", str(paths["A"]), str(paths[name]), "--metric", "gpt_score"]) == 0
        assert reasons[name] in " ".join("".join(capsys.readouterr()).split()), name
    assert main(["compare", str(paths["A"]), str(paths["patchy"]), "--metric", "gpt_score"]) == 0
    assert "1.000" in capsys.readouterr().out


def test_the_difference_of_two_systems_is_that_of_their_judges_scores(judged, capsys, tmp_path):
    """The panel's difference and each judge's, by hand from the files that the calls have filled."""
    one = judged("A", Day())
    two = judged("B", Day(), outputs=[f"another {i}" for i in range(N)])
    files = [next(path.parent.glob("samples_*.jsonl")) for path in (one, two)]
    rows = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    capsys.readouterr()
    assert main(["compare", str(one), str(two), "--json", str(tmp_path / "c.json")]) == 0
    out = capsys.readouterr().out
    for name in ("gpt_score", *(f"gpt_score_{provider}-judge" for provider in PROVIDERS)):
        means = [sum(row[name][0] for row in some) / N for some in rows]
        assert means[0] != means[1]
        line = next(line for line in out.split("\n") if re.match(rf"\W*{name}\s", line))
        assert f"{means[1] - means[0]:+.1f}" in line, line
