"""Panel files: those that ship, and what is refused."""

import inspect
from typing import get_args

import pytest

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.judge.panel import Panel, load_panel, panel_from, parse_panel
from testing.judge_servers import KEYS

JUDGE = {"provider": "openai", "model": "m"}


def test_the_panels_that_ship_load():
    assert [judge.provider for judge in load_panel("current").judges] == ["openai", "anthropic", "google"]
    assert load_panel("paper").judges[0].model == "gpt-4o"
    assert load_panel("local").judges[0].provider == "hf"


def test_the_current_panel_is_known_to_the_installed_sdks():
    import anthropic.types.model_param
    import openai.types.shared.chat_model
    from google.genai import models

    gpt, claude, gemini = load_panel("current").judges
    assert gpt.model in get_args(openai.types.shared.chat_model.ChatModel)
    assert claude.model in get_args(get_args(anthropic.types.model_param.ModelParam)[0])
    assert gemini.model in inspect.getsource(models)


def test_where_a_panel_comes_from(tmp_path, monkeypatch):
    assert panel_from({}) is None
    monkeypatch.setenv("LORA_DROP_JUDGES", "local")
    assert panel_from(None).judges[0].provider == "hf"
    assert len(panel_from({"judges": "current"}).judges) == 3


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "list `judges`"),
        ({"judges": [{"provider": "opnai", "model": "m"}]}, "must be one of openai"),
        ({"judges": [{"provider": "openai"}]}, "model is missing"),
        ({"judges": [JUDGE, JUDGE]}, "a name of its own"),
        ({"judges": [{**JUDGE, "modle": "x"}]}, "Did you mean model"),
        ({"judges": [{**JUDGE, "price": {"input": -1, "output": 1}}]}, "at least 0"),
        ({"judges": [{**JUDGE, "max_tokens": 0}]}, "at least 1"),
        ({"judges": [JUDGE], "max_spend": "much"}, "number of at least 0"),
        ({"judges": [JUDGE], "concurrency": {"opena": 1}}, "Did you mean openai"),
        ({"judges": [{**JUDGE, "base_url": "localhost:8000"}]}, "begin with http"),
        ({"judges": [{**JUDGE, "structured": "yes"}]}, "true or false"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_way_out(data, said):
    with pytest.raises(ArgumentError, match=said):
        parse_panel(data, "panel.yaml")


@pytest.mark.parametrize(
    "entry",
    [
        {"api_key": KEYS["openai"]},
        {"api_key_env": KEYS["openai"]},
        {"options": {"extra_headers": {"Authorization": KEYS["openai"]}}},
        {"base_url": f"https://user:{KEYS['openai']}@example.org/v1"},
        {"base_url": f"https://example.org/v1?key={KEYS['openai']}"},
    ],
)
def test_a_key_in_the_file_is_refused_and_not_repeated(entry):
    with pytest.raises(ArgumentError) as caught:
        parse_panel({"judges": [{**JUDGE, **entry}]}, "panel.yaml")
    assert KEYS["openai"] not in str(caught.value)


def test_a_torn_yaml_does_not_show_its_lines(tmp_path):
    file = tmp_path / "panel.yaml"
    file.write_text(f"judges: [ {{api_key: {KEYS['openai']}")
    with pytest.raises(ArgumentError) as caught:
        load_panel(file)
    assert KEYS["openai"] not in str(caught.value)


def test_missing_keys_are_named_all_at_once(monkeypatch):
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(ArgumentError, match=r"OPENAI_API_KEY.*ANTHROPIC_API_KEY.*GEMINI_API_KEY"):
        load_panel("current").check_keys()
    own = parse_panel({"judges": [{**JUDGE, "base_url": "http://localhost/v1"}]}, "x")
    own.check_keys()
    assert isinstance(own, Panel)


@pytest.mark.parametrize(
    "text",
    [
        "judges: &a [*a]",
        "judges: [{provider: openai, model: m, options: &a {x: *a}}]",
        "judges: [{provider: openai, model: m, options: {when: 2020-01-01}}]",
        "judges: [{provider: openai, model: m, options: {1: 2}}]",
        "judges: [{provider: openai, model: m, options: {t: .nan}}]",
        "judges: [{provider: [openai], model: m}]",
        "judges: [{provider: openai, model: [m]}]",
        "judges: [{provider: openai, model: m, name: [x]}]",
        "judges: [{provider: openai, model: m, base_url: 'http://[::1'}]",
        "judges: [{provider: openai, model: m, base_url: 'http://a:port/'}]",
        'judges: [{provider: openai, model: m, base_url: "http://a\\n.b/"}]',
        "judges: [{provider: openai, model: m, base_url: 5}]",
        "judges: [{provider: openai, model: m, max_tokens: .nan}]",
        "judges: [{provider: openai, model: m, max_tokens: 1" + "0" * 5000 + "}]",
        "judges: [{provider: openai, model: m, price: {input: .inf, output: 1}}]",
        "judges: [{provider: openai, model: m, api_key_env: [x]}]",
        "judges: [{provider: openai, model: m}]\nattempts: 1000000000",
        "judges: [{provider: openai, model: m}]\ntimeout: .inf",
        "judges: [{provider: openai, model: m}]\nconcurrency: [1]",
        "judges: [{provider: openai, model: m}]\n? [a, b]\n: 1",
        "judges: " + "[" * 5000,
        "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
        "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\njudges: [{provider: *e}]",
        "!!python/object/apply:os.system [true]",
        "\x00",
        "judges: [{provider: openai, model: m}]" + " " * 300_000,
    ],
    ids=range(25),
)
def test_a_hostile_file_is_refused_in_one_short_line(tmp_path, text):
    file = tmp_path / "panel.yaml"
    file.write_text(text)
    with pytest.raises(ArgumentError) as caught:
        load_panel(file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("path", ["~nosuchuser/panel.yaml", "a\0b", "x" * 5000, "/dev/zero", "/", "", 5, ["a"]])
def test_what_is_no_file_is_no_panel(path):
    with pytest.raises(ArgumentError, match="is not a panel file"):
        load_panel(path)
