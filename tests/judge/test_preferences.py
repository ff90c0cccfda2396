"""People's sheets joined to a panel's preferences: `judge sheet`, `judge pairwise`, `judge collect --judged`."""

import csv
import json
import re

import numpy as np
import pytest
import yaml

from lm_eval_lora_drop.commands.main import main
from lm_eval_lora_drop.judge.people.sheets import COLUMNS
from testing.judge_servers import Say
from testing.judged_runs import write_judged

PAIRS = 72
WORTH = np.random.default_rng(5).normal(0.5, 1.0, PAIRS)
"""How much better the first system's output is, in the eyes of people."""
FIRST = ["the same" if i % 12 == 11 else f"first {i}" for i in range(PAIRS)]
SECOND = ["the same" if i % 12 == 11 else f"second {i}" for i in range(PAIRS)]
ASKED = [i for i in range(PAIRS) if i % 12 != 11]
TRUTH = 100 * float(np.mean(WORTH[ASKED] > 0))


def prefers_first(model, number):
    return number % 2 == 0 if model == "judge-2" and number % 3 == 0 else bool(WORTH[number] > 0.1)


def judge(request, nth):
    """Follows people, but finds the second system better than it is; judge-2 guesses on each third document."""
    texts = [re.search(f"<({name}-[0-9a-f]{{16}})>\n(.*)\n</\\1>", request.prompt, re.DOTALL)[2] for name in "AB"]
    number = int(texts[0].split()[1])
    first = prefers_first(request.model, number)
    better = "AB"[[text.startswith("first") for text in texts].index(first)]
    return Say(json.dumps({"better": better}))


@pytest.fixture
def folder(tmp_path, serve):
    """Two runs, a sheet of 30 pairs filled by people who agree with `WORTH`, and the panel's preferences."""
    server = serve(judge)
    for name, outputs in (("one", FIRST), ("two", SECOND)):
        write_judged(tmp_path / name, outputs, name=name)
    judges = [server.judge("openai", name="follows"), server.judge("anthropic", "judge-2", name="guesses")]
    (tmp_path / "panel.yaml").write_text(yaml.safe_dump({"judges": judges, "backoff": 0.01}))
    runs = [str(tmp_path / name) for name in ("one", "two")]
    assert main(["judge", "sheet", *runs, "-o", str(tmp_path), "--number", "30"]) == 0
    key = json.loads((tmp_path / "key.json").read_text())["pairs"]
    with (tmp_path / "sheet.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, entry in zip(rows, key, strict=True):
        first = WORTH[entry["doc_id"]] > 0
        row |= dict.fromkeys(COLUMNS, "1" if first != entry["swapped"] else "2")
        row |= {"fluency": "", "accuracy": row["accuracy"] if int(row["pair"]) <= 3 else ""}
    with (tmp_path / "ann.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path


def pairwise(folder, first, second, name):
    runs = [str(folder / run) for run in (first, second)]
    path = folder / name
    assert main(["judge", "pairwise", *runs, "--panel", str(folder / "panel.yaml"), "--json", str(path)]) == 0
    return path


def collect(folder, judged):
    out = folder / "found.json"
    files = [str(folder / name) for name in ("key.json", "ann.csv")]
    assert main(["judge", "collect", *files, "--judged", str(judged), "--json", str(out)]) == 0
    return json.loads(out.read_text())["criteria"]


def test_the_joined_win_rate_holds_and_each_judge_is_compared_with_people(folder, capsys):
    criteria = collect(folder, pairwise(folder, "one", "two", "preference.json"))
    found = criteria["overall"]["with_judges"]
    low, high = found["interval"]
    assert low <= TRUTH <= high
    assert (found["by_people"], found["by_judges_alone"]) == (30, len(ASKED) - 30)
    key = [entry["doc_id"] for entry in json.loads((folder / "key.json").read_text())["pairs"]]
    # The published estimator by hand, with the pair that is assumed beside the real ones.
    panel = {i: 50.0 * sum(prefers_first(f"judge-{n}", i) for n in (1, 2)) for i in ASKED}
    people = np.array([100.0 * (WORTH[i] > 0) for i in key] + [0, 0, 100, 100])
    judged = np.array([panel[i] for i in key] + [0, 100, 0, 100])
    rest = np.mean([panel[i] for i in ASKED if i not in key])
    t, weights = found["tuning"], [1] * 30 + [0.25] * 4
    assert 0 < t < 1
    assert found["value"] == pytest.approx(np.average(people - t * judged, weights=weights) + t * rest)
    for name, model in (("follows", "judge-1"), ("guesses", "judge-2")):
        same = sum(prefers_first(model, i) == (WORTH[i] > 0) for i in key)
        assert (found["judges"][name]["same"], found["judges"][name]["pairs"]) == (same, 30)
    assert found["judges"]["follows"]["agreement"] > 0.5 > found["judges"]["guesses"]["agreement"]
    said = capsys.readouterr().out
    assert "people alone" in said
    assert f"same choice as people on {same} of 30 pairs" in said
    # A criterion with too few votes is said, and costs the others nothing.
    assert criteria["fluency"]["with_judges"] is None
    assert criteria["accuracy"]["with_judges"] is None
    assert criteria["readability"]["with_judges"]["by_people"] == 30
    assert "fewer than five pairs" in said
    # The order of the systems is that of the sheets.
    assert collect(folder, pairwise(folder, "two", "one", "turned.json"))["overall"]["with_judges"] == found


def test_preferences_over_other_outputs_are_refused(folder, capsys):
    write_judged(folder / "two", [f"{text} again" for text in SECOND], name="two")
    judged = pairwise(folder, "one", "two", "other.json")
    files = [str(folder / name) for name in ("key.json", "ann.csv")]
    assert main(["judge", "collect", *files, "--judged", str(judged)]) == 1
    assert "was judged with other outputs" in capsys.readouterr().err


FOREIGN = [
    "",
    "[]",
    "{}",
    '{"choices": []}',
    '{"choices": [{"doc_id": 1, "outputs": ["a", "b"], "judges": {"x": 2}}]}',
    '{"choices": [{"doc_id": 1, "outputs": ["a"], "judges": {"x": 1}}]}',
    '{"choices": [{"doc_id": 1, "outputs": ["a", "b"], "judges": ["x"]}]}',
    '{"choices": [{"doc_id": 1, "outputs": ["a", "b"], "judges": {"x": [1]}}]}',
]


def test_a_file_of_something_else_is_refused(folder, capsys):
    files = [str(folder / name) for name in ("key.json", "ann.csv")]
    for text in FOREIGN:
        (folder / "bad.json").write_text(text)
        assert main(["judge", "collect", *files, "--judged", str(folder / "bad.json")]) == 1
        assert "bad.json" in capsys.readouterr().err
