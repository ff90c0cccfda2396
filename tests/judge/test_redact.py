"""Keys in what is written: none, in no form, and no part of eight characters."""

import base64
import json
import logging
import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_lora_drop.judge.redact import PART, Redactor, quiet_sdks
from lm_eval_lora_drop.judge.score import Item, score
from testing.judge_servers import KEYS, PROVIDERS, Say, score_json

keys = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=PART, max_size=60)


def parts(text):
    return {text[i : i + PART] for i in range(len(text) - PART + 1)}


def decoded(text, key):
    """Whether base64 within `text` decodes to eight characters of the key, by trying every run at every offset."""
    for run in re.findall(r"[A-Za-z0-9+/_-]{11,}", text):
        for start in range(4):
            piece = run[start:].replace("-", "+").replace("_", "/")
            data = base64.b64decode(piece[: len(piece) // 4 * 4]).decode("latin-1")
            if parts(key) & parts(data):
                return True
    return False


@given(keys, st.text(max_size=20), st.text(max_size=20), st.integers(0, 60), st.integers(0, 60))
def test_no_part_of_a_key_is_left(key, before, after, start, end):
    redactor = Redactor([key])
    shown = redactor.message(before + key[start : max(end, start)] + after)
    assert not parts(key) & parts(shown.replace("[key]", "\0"))
    url = quote(key, safe="")
    assert not parts(url) & parts(redactor.message(before + url + after).replace("[key]", "\0"))


@given(keys, st.binary(max_size=7), st.binary(max_size=7))
def test_no_base64_of_a_key_is_left(key, before, after):
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        shown = Redactor([key]).message(encode(before + key.encode() + after).decode())
        assert not decoded(shown.replace("[key]", " "), key)


@given(st.text())
def test_what_holds_no_key_is_left_alone(text):
    redactor = Redactor(["sk-planted-openai-1"])
    assert redactor.message(text) == redactor.answer(text) == text
    body = json.dumps({"a": text}).encode()
    assert redactor.body(body) == body.decode()


@pytest.mark.parametrize("key", ["7", "score", "a", "none", '"'])
def test_a_short_key_corrupts_no_answer_and_stands_in_no_message(key):
    redactor = Redactor([key])
    assert redactor.answer('{"score": 7}') == redactor.body(b'{"score": 7}') == '{"score": 7}'
    if key.isalnum():
        assert redactor.message(f"wrong key {key}.") == "wrong key [key]."


def test_a_key_behind_the_escapes_of_json_is_found():
    key = KEYS["openai"]
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in key)
    for body in (f'{{"a": "{escaped}"}}', f'{{"{escaped}": [1, ["{escaped}"]], "n": NaN}}'):
        assert not parts(key) & parts(json.dumps(json.loads(Redactor([key]).body(body.encode()))))
    doubled = f'{{"a": "{key}", "a": "x"}}'
    assert key not in Redactor([key]).body(doubled.encode())


@pytest.mark.parametrize(
    ("provider", "where"),
    [
        *((provider, "error") for provider in PROVIDERS),
        *zip(PROVIDERS * 2, ("long error", "text", "field", "header", "model", "long error"), strict=True),
    ],
)
def test_a_server_that_repeats_the_key_brings_it_into_no_file_and_no_log(
    provider, where, serve, panel_of, cache, tmp_path, caplog
):
    key = KEYS[provider]
    forms = f"{key} {quote(key, safe='')} {base64.b64encode(b'user:' + key.encode()).decode()} {key[:12]}... {key[-9:]}"
    says = {
        "error": Say(status=401, error=forms),
        "long error": Say(status=400, error="x" * 230 + key + forms),  # a cut within the key
        "text": Say(forms),
        "field": Say(score_json(7), change=lambda body: {**body, "you_sent": [forms, {forms: 1}]}),
        "header": Say(score_json(7), headers={"x-echo": forms}),
        "model": Say(score_json(7), model=forms[:60]),
    }
    server = serve(lambda request, nth: says[where])
    with caplog.at_level(logging.DEBUG):
        found = score(panel_of(server.judge(provider)), [Item("summary", "s", "r", "p")], cache)
    (tmp_path / "results.json").write_text(json.dumps(found.to_json()))
    cache.close()
    everything = caplog.text + "".join(
        file.read_bytes().decode("latin-1") for file in tmp_path.rglob("*") if file.is_file()
    )
    assert server.requests
    assert not parts(key) & parts(everything.replace("[key]", "\0"))
    assert not decoded(everything.replace("[key]", " "), key)


def test_the_loggers_are_as_before_when_judges_are_done():
    logging.getLogger("openai").setLevel(logging.DEBUG)
    try:
        with quiet_sdks():
            assert logging.getLogger("openai").level == logging.WARNING
        assert logging.getLogger("openai").level == logging.DEBUG
    finally:
        logging.getLogger("openai").setLevel(logging.NOTSET)
