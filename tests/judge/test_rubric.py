"""Criteria, several answers per judge, and rubrics of strangers for any task."""

import json
import sqlite3

import pytest
import yaml

from lm_eval_lora_drop.commands.main import main
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.judge.panel import load_panel
from lm_eval_lora_drop.judge.people.sheets import CRITERIA
from lm_eval_lora_drop.judge.questions import KINDS, VERSION, Rubric, load_rubric, preference_question, score_question
from lm_eval_lora_drop.judge.reading import read_score
from lm_eval_lora_drop.judge.score import Item, score
from lm_eval_lora_drop.record.fingerprint import digest
from testing.judge_servers import Say, score_json
from testing.run_files import write_run

ITEMS = [Item("summary", f"Ann: {i}?", f"reference {i}", f"prediction {i}") for i in range(4)]


def test_the_papers_criteria_are_the_papers():
    """Fluency, accuracy, readability, completeness (shared notes on arXiv 2503.23360)."""
    assert list(CRITERIA) == ["fluency", "accuracy", "readability", "completeness"]
    assert set(CRITERIA) <= set(load_panel("paper").criteria)


def test_samples_are_averaged_and_the_first_is_the_old_answer(serve, panel_of, cache):
    server = serve(lambda request, nth: Say(score_json(nth + 3)))
    judge = server.judge("openai")
    assert score(panel_of(judge), ITEMS, cache).by_judge["openai-judge"] == [4] * 4
    found = score(panel_of(judge, samples=4), ITEMS, cache)
    assert found.by_judge["openai-judge"] == [(4 + 5 + 6 + 7) / 4] * 4
    assert len(server.requests) == 16  # the first four of before are not asked again
    assert found.mean == 55.0
    assert score(panel_of(judge), ITEMS, cache).by_judge["openai-judge"] == [4] * 4
    assert score(panel_of(judge, samples=4), ITEMS, cache).by_judge == found.by_judge
    assert len(server.requests) == 16


def test_one_unread_sample_leaves_the_mean_of_the_others(serve, panel_of, cache):
    server = serve(lambda request, nth: Say("hm") if nth == 1 else Say(score_json(8)))
    panel = panel_of(server.judge("openai"), samples=3, concurrency={"openai": 1})
    assert score(panel, ITEMS[:1], cache).by_judge["openai-judge"] == [8]


def test_samples_at_temperature_zero_are_refused(serve, panel_of):
    server = serve(lambda request, nth: Say(score_json(8)))
    with pytest.raises(ArgumentError, match="samples: 2 has no effect at temperature 0"):
        panel_of(server.judge("openai", options={"temperature": 0}), samples=2)


def test_criteria_are_another_prompt_and_leave_the_old_one_cached(serve, panel_of, cache):
    server = serve(lambda request, nth: Say(score_json(9 if "wit and charm" in request.prompt else 2)))
    judge = server.judge("openai")
    assert score(panel_of(judge), ITEMS, cache).mean == 20.0
    found = score(panel_of(judge, criteria={"style": "has wit and charm"}), ITEMS, cache)
    assert found.mean == 90.0
    assert "- style: has wit and charm." in server.requests[-1].prompt
    assert len(server.requests) == 8
    assert score(panel_of(judge), ITEMS, cache).mean == 20.0
    assert len(server.requests) == 8


def test_samples_and_criteria_change_nothing_of_what_is_cached(serve, panel_of, cache):
    """Row by row and byte by byte, for every provider; and the old panel still finds all of it, without a call."""
    server = serve(lambda request, nth: Say(score_json((len(request.prompt) + nth) % 11)))
    judges = [server.judge(provider) for provider in ("openai", "anthropic", "google")]
    criteria = {"style": "has wit and charm"}

    def rows():
        with sqlite3.connect(cache.path) as connection:
            return connection.execute("SELECT * FROM calls ORDER BY id").fetchall()

    old = score(panel_of(*judges), ITEMS, cache)
    before = rows()
    assert len(before) == 3 * len(ITEMS)
    for settings in ({"samples": 4}, {"criteria": criteria}, {"samples": 3, "criteria": criteria}):
        score(panel_of(*judges, **settings), ITEMS, cache)
        assert rows()[: len(before)] == before
    # Of each judge and text: three more samples under the old prompt, three under the new one.
    assert len(rows()) == len(before) * (1 + 3 + 3)
    asked = len(server.requests)
    again = score(panel_of(*judges), ITEMS, cache, offline=True)
    assert again.by_judge == old.by_judge
    assert {k: v for k, v in again.to_json().items() if k != "dollars"} == {
        **{k: v for k, v in old.to_json().items() if k != "dollars"},
        **{k: again.to_json()[k] for k in ("calls", "calls_before", "dollars_of_this_run")},
    }
    assert len(server.requests) == asked


def test_a_changed_prompt_has_another_version():
    """Results name the version, and scores of two versions are not compared: so the text may not move under one."""
    prompts = [
        *(
            score_question(kind, "source", "reference", "prediction", structured=form).prompt
            for kind in KINDS
            for form in (True, False)
        ),
        *(preference_question(kind, "source", "reference", "one", "two", structured=True).prompt for kind in KINDS),
    ]
    assert {VERSION: digest(*prompts)[:19]} == {2: "sha256:b2d9fa2dfd5c"}


@pytest.mark.parametrize("criteria", [["a"], {"a": 1}, {"": "x"}, {"a": "x" * 501}, {"a\n": "x"}, {"a": "x\ny"}])
def test_criteria_that_are_none(criteria, serve, panel_of):
    server = serve(lambda request, nth: Say(score_json(8)))
    with pytest.raises(ArgumentError, match="criteria"):
        panel_of(server.judge("openai"), criteria=criteria)


@pytest.mark.parametrize(
    ("text", "scale", "value"),
    [
        ('{"score": 5}', (1, 5), 5),
        ('{"score": 0}', (1, 5), None),
        ('{"score": 6}', (1, 5), None),
        ("4/5", (1, 5), 4),
        ("4/10", (1, 5), None),
        ("on a scale of 1 to 5: 3", (1, 5), 3),
        ("Score: 100", (0, 100), 100),
        ("Score: 101", (0, 100), None),
        ("75/100", (0, 100), 75),
        ("7/10", (0, 10), 7),
    ],
)
def test_scores_are_read_on_their_scale(text, scale, value):
    assert read_score(text, scale) == value


@pytest.fixture
def qa(tmp_path, serve):
    """A run of somebody's question answering task, a panel, and the server behind it."""
    server = serve(lambda request, nth: Say(score_json(4)))
    path = write_run(tmp_path / "run", {"exact_match": [1.0, 0.0]}, outputs=["Paris", "{{ 7*7 }} {source}"])
    panel = tmp_path / "panel.yaml"
    panel.write_text(yaml.safe_dump({"judges": [server.judge("openai")]}))
    return path, panel, server


def rubric_file(folder, **entries):
    path = folder / "rubric.yaml"
    path.write_text(yaml.safe_dump({"text": "answer to a question", **entries}))
    return path


def test_any_task_is_scored_by_a_rubric(qa, tmp_path, capsys):
    path, panel, server = qa
    rubric = rubric_file(
        tmp_path,
        origin="Question",
        source="Q: {{question}}",
        scale=[1, 5],
        reference=False,
        criteria={"tone": "is kind"},
    )
    arguments = ["judge", "rescore", str(path), "--panel", str(panel), "--rubric", str(rubric)]
    assert main([*arguments, "--dry-run"]) == 0
    assert "2 calls" in capsys.readouterr().out
    assert main(arguments) == 0
    # They are asked at once, in any order.
    (prompt,) = (request.prompt for request in server.requests if "Q: question 0" in request.prompt)
    assert "You judge an answer to a question." in prompt
    assert "- tone: is kind." in prompt
    assert "from 1 to 5" in prompt
    assert "target 0" not in prompt
    assert "{{ 7*7 }} {source}" in server.requests[1].prompt
    data = json.loads(path.read_text())
    assert data["results"]["t"]["gpt_score,none"] == 75.0  # 4 on 1 to 5
    assert data["configs"]["t"]["metadata"]["gpt_score"]["rubric"]["criteria"] == {"tone": "is kind"}


def test_without_a_source_judges_see_the_prompt_and_the_reference(qa, tmp_path):
    path, panel, server = qa
    assert main(["judge", "rescore", str(path), "--panel", str(panel), "--rubric", str(rubric_file(tmp_path))]) == 0
    # They are asked at once, in any order.
    (prompt,) = (request.prompt for request in server.requests if "prompt 0" in request.prompt)
    assert "target 0" in prompt


def test_two_runs_of_any_task_are_compared_in_pairs(qa, tmp_path, capsys):
    path, panel, server = qa
    server.behaviour = lambda request, nth: Say(json.dumps({"better": "tie"}))
    other = write_run(tmp_path / "other", {"exact_match": [0.0, 0.0]}, outputs=["London", "Rome"], name="other")
    rubric = rubric_file(tmp_path, criteria={"tone": "is kind"})
    assert main(["judge", "pairwise", str(path), str(other), "--panel", str(panel), "--rubric", str(rubric)]) == 0
    assert "- tone: is kind." in server.requests[0].prompt
    assert "2 ties" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"text": 5}, "text"),
        ({"text": "x" * 201}, "text"),
        ({"text": "a\x1b[31m"}, "text"),
        ({"scale": [5, 1]}, "scale"),
        ({"scale": [0, 1000]}, "scale"),
        ({"scale": [True, 5]}, "scale"),
        ({"reference": "no"}, "reference"),
        ({"critera": {"a": "b"}}, "Did you mean criteria"),
        ({"source": "x" * 10_001}, "source"),
    ],
)
def test_a_rubric_that_is_none_is_refused(entries, said, tmp_path):
    with pytest.raises(ArgumentError, match=said):
        load_rubric(rubric_file(tmp_path, **entries))


@pytest.mark.parametrize("content", ["", "7", "- a", "text: [", "a: &a [*a]\ntext: x", "x" * 300_000])
def test_a_file_that_is_no_rubric_is_refused(content, tmp_path):
    path = tmp_path / "rubric.yaml"
    path.write_text(content)
    with pytest.raises(ArgumentError):
        load_rubric(path)


@pytest.mark.parametrize(
    "name", ["question.__class__", "''.join(question)", "env['HOME']", "/etc/passwd", "question|upper", "7*7"]
)
def test_a_template_runs_nothing(name):
    with pytest.raises(ArgumentError, match="does not have"):
        Rubric("answer", "Question", source=f"{{{{ {name} }}}}").source_of({"question": "who?"}, "prompt")


@pytest.mark.parametrize("source", ["{% include 'x' %} {{ a b }}", "{{ {question} }}", "{question}{{}}"])
def test_what_is_no_field_stays_as_it_is(source):
    rubric = Rubric("answer", "Question", source=source + "{{question}}")
    assert rubric.source_of({"question": "who? {{question}}"}, "prompt") == source + "who? {{question}}"


def test_a_template_cannot_grow_without_bound():
    with pytest.raises(ArgumentError, match="characters"):
        Rubric("answer", "Q", source="{{a}}" * 2000).source_of({"a": "x" * 10_000}, "")
