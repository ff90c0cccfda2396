"""`lora-drop check --server`: a server of another adapter, or of the base model alone, is recognised."""

import re

import peft
import pytest
import transformers

from lm_eval_lora_drop.commands import main as cli
from lm_eval_lora_drop.commands.served import KEY
from testing.completions_server import CompletionsServer
from testing.tiny import make_adapter

pytest.importorskip("openai")


def served(base, adapter=None, kind="echo", **settings):
    """A server with this adapter on this base model."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, str(adapter))
    return CompletionsServer(model.eval(), transformers.AutoTokenizer.from_pretrained(base), kind, **settings)


def check(capsys, server, adapter, *more, url=None):
    given = ["--peft", adapter, "--server", url or server.url, "--served-model", "served", *more]
    code = cli.main(["check", *map(str, given)])
    said = capsys.readouterr()
    row = next((line for line in said.out.splitlines() if re.match(r"server  ", line)), "")
    return code, row, said


@pytest.mark.parametrize(
    ("rank", "code", "verdict"), [(None, 1, "as the base model"), (0, 0, "agrees"), (5, 1, "another")]
)
def test_the_three_servers_by_log_probabilities(rank, code, verdict, tiny_base, tiny_adapter, tmp_path, capsys):
    """Base model, the adapter itself, an adapter with another seed; its texts a random model does not read back."""
    other = make_adapter(tiny_base, tmp_path / "other", seed=rank) if rank else tiny_adapter
    with served(tiny_base, None if rank is None else other) as server:
        found, row, said = check(capsys, server, tiny_adapter, "--boundary", "full", "--tokens", 4)
    assert (found, verdict in row) == (code, True), said.out
    assert f"Sent to {server.url}/v1: 6 prompts, twice, for model served; no key" in said.err


def test_a_part_of_the_adapter_is_told_from_the_whole(tiny_base, tiny_adapter, capsys):
    """What was evaluated is K = 2; the full adapter is served."""
    with served(tiny_base, tiny_adapter) as server:
        assert check(capsys, server, tiny_adapter, "--boundary", 2, "--tokens", 2)[0] == 1


@pytest.mark.parametrize("kind", ["strict", "deaf"])
def test_texts_that_tell_nothing_are_no_agreement(kind, tiny_base, tiny_adapter, capsys):
    """A random model's texts are not read back as the tokens they were written in; there are no log-probabilities."""
    with served(tiny_base, tiny_adapter, kind) as server:
        code, row, _ = check(capsys, server, tiny_adapter, "--boundary", "full", "--tokens", 4)
    assert (code, "INCONCLUSIVE" in row) == (1, True), row


@pytest.mark.smollm2
def test_the_three_servers_of_a_real_model_by_texts(smollm2, shared_adapters, capsys):
    """The server has no log-probabilities: how far what was evaluated prefers other tokens decides."""
    adapter = shared_adapters / "samsum-smollm2-r8"
    verdicts = {}
    for name, given in (("right", adapter), ("base", None), ("other", shared_adapters / "arith-smollm2-r8")):
        with served(smollm2, given, "strict") as server:
            options = ("--pretrained", smollm2, "--boundary", "full", "--tokens", 8, "--limit", 3)
            verdicts[name] = check(capsys, server, adapter, *options)[1]
    assert "agrees (texts)" in verdicts["right"], verdicts
    assert "as the base model" in verdicts["base"], verdicts
    assert "another adapter or base model" in verdicts["other"], verdicts


def test_a_server_that_reads_other_tokens(tiny_base, tiny_adapter, capsys):
    """A first token more than lm_eval's: every number after it would be another one."""
    with served(tiny_base, tiny_adapter) as server:
        plain = server.tokenizer
        server.tokenizer = lambda text, **how: plain(f"<s>{text}", **how)
        server.tokenizer.decode = plain.decode
        code, row, _ = check(capsys, server, tiny_adapter, "--boundary", "full", "--tokens", 2)
    assert code == 1
    assert "reads the prompts as other tokens" in row


def test_the_key_comes_from_its_own_variable(tiny_base, tiny_adapter, monkeypatch, capsys):
    """No other service's key is sent, and none is repeated when the server quotes it."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-service")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-another-service")
    options = ("--boundary", 2, "--tokens", 2, "--limit", 2)
    with served(tiny_base, tiny_adapter, key="planted-key-1") as server:
        code, _, said = check(capsys, server, tiny_adapter, *options)
        assert (code, "HTTP 401" in said.err) == (1, True)
        assert "another-service" not in str(server.headers)
        monkeypatch.setenv(KEY, "planted-key-2")
        code, _, said = check(capsys, server, tiny_adapter, *options)
        assert (code, "HTTP 401" in said.err, "planted-key" in said.err) == (1, True, False)
        monkeypatch.setenv(KEY, "planted-key-1")
        assert check(capsys, server, tiny_adapter, *options)[1]
        assert server.headers[-1]["authorization"] == "Bearer planted-key-1"


def test_no_redirect_is_followed(tiny_base, tiny_adapter, monkeypatch, capsys):
    monkeypatch.setenv(KEY, "planted-key-1")
    with served(tiny_base, tiny_adapter) as elsewhere:
        with served(tiny_base, answer=(307, {"Location": f"{elsewhere.url}/v1/completions"}, b"")) as server:
            code, _, said = check(capsys, server, tiny_adapter, "--boundary", 2)
        assert (code, elsewhere.asked) == (1, [])
    assert "not followed" in said.err


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, {}, b"<html>"), "without choices"),
        ((200, {}, b'{"choices": []}'), "without choices"),
        ((200, {}, b'{"choices": [{"text": null}]}'), "without choices"),
        ((200, {}, b'[{"choices": 1}]'), "without choices"),
        ((404, {}, b'{"error": {"message": "no such model \\u001b[2J"}}'), "HTTP 404"),
        ((503, {}, b"loading"), "HTTP 503"),
    ],
)
def test_a_server_that_is_none(answer, message, tiny_base, tiny_adapter, capsys):
    """In one message, before the model is loaded; what the server says cannot steer the terminal."""
    with served(tiny_base, answer=answer) as server:
        code, _, said = check(capsys, server, tiny_adapter, "--boundary", 2)
    assert (code, said.out) == (1, "")
    assert message in said.err
    assert "Traceback" not in said.err
    assert "\x1b" not in said.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--server", "http://127.0.0.1:9"], "--server and --served-model go together"),
        (["--served-model", "x"], "--server and --served-model go together"),
        (["--server", "localhost:8000", "--served-model", "x"], "--server must be a URL"),
        (["--server", "http://user:secret@localhost:1", "--served-model", "x"], "must hold no key"),
        (["--server", "http://127.0.0.1:9", "--served-model", "x"], "does not answer"),
        (["--server", "http://[::1", "--served-model", "x"], "--server must be a URL"),
    ],
)
def test_bad_input(options, message, tiny_adapter, capsys):
    code = cli.main(["check", "--peft", str(tiny_adapter), "--boundary", "2", *options])
    said = capsys.readouterr().err
    assert (code, message in said, "Traceback" in said) == (1, True, False), said
    assert "secret" not in said
