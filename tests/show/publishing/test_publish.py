"""What is published fits the published schemas, says what it must, and is sent only when asked."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

import lm_eval_lora_drop as lora_drop
from lm_eval_lora_drop.adapter.files import open_adapter
from lm_eval_lora_drop.commands.main import main
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.find import read_run
from lm_eval_lora_drop.record.runs import Score
from lm_eval_lora_drop.show.model_card import END, START, interval, model_card
from testing.recorded_runs import results_of, run_record, sweep_record, task_record, write_results

SCHEMAS = Path(__file__).parent / "schemas"
DIGEST = "sha256:" + "ab" * 32
NAMES = ["gsm8k", "lora_drop_samsum", "a|b\n<c> é"]


def results(names: list[str] = NAMES, **more: Any) -> dict[str, Any]:
    record = run_record({name: task_record(sweep_record()) for name in names})
    found = results_of(record, **more)
    for name in names:
        found["results"][name] |= {"exact_match,strict": 0.98, "exact_match_stderr,strict": 0.02}
        found["higher_is_better"][name]["exact_match"] = True
    for name in {"gsm8k"} & set(names):
        found["configs"][name] = {"dataset_path": "openai/gsm8k", "dataset_name": "main", "test_split": "test"}
    for name in {"lora_drop_samsum"} & set(names):
        found["configs"][name] = {
            "dataset_kwargs": {"hub": "knkarthick/samsum", "folder": "samsum"},
            "test_split": "test",
            "generation_kwargs": {"max_gen_toks": 96, "do_sample": False, "temperature": 0.0},
        }
    return found


def made(folder: Path, found: dict[str, Any] | None = None, **options: Any):
    run = read_run(write_results(folder, results() if found is None else found))
    return model_card(run, "me/smaller", **options)


def front(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


# The Hub's specifications are templates: `key: {value}   # Required ...`.


def template(name: str) -> tuple[Any, set[str]]:
    """The template's first entry, and the dotted paths that are said to be required."""
    text = (SCHEMAS / name).read_text(encoding="utf-8")
    required, parents = set(), []
    for line in text.splitlines():
        match = re.match(r"^(?P<indent>[ -]*)(?P<key>[\w-]+):(?P<rest>.*)$", line)
        if not match:
            continue
        depth = len(match["indent"])
        parents = [(d, k) for d, k in parents if d < depth] + [(depth, match["key"])]
        if "# Required." in match["rest"]:
            required.add(".".join(key for _, key in parents))
    return yaml.safe_load(re.sub(r"\{(\w+)\}", r"\1", text)), required


def assert_fits(value: Any, shape: Any, required: set[str], path: str = "") -> None:
    if isinstance(shape, list):
        for one in value:
            assert_fits(one, shape[0], required, path)
    elif isinstance(shape, dict) and not path.endswith("args"):
        assert set(value) <= set(shape), (path, set(value) - set(shape))
        for key, part in shape.items():
            below = f"{path}.{key}".lstrip(".")
            if key in value:
                assert_fits(value[key], part, required, below)
            else:
                assert below not in required, f"{below} is required"


def test_the_card_has_a_table_and_a_model_index_of_the_hubs_shape(tmp_path):
    card = made(tmp_path)
    head = front(card)
    assert_fits({"model-index": head["model-index"]}, *template("model_index.yaml"))
    assert (head["base_model"], head["library_name"]) == ("org/base", "peft")
    parsed = ModelCard(card).data.eval_results
    assert [(one.task_name, one.metric_type, one.metric_value) for one in parsed] == [
        (name, "rouge_l", 33.04) for name in NAMES
    ]
    assert parsed[1].dataset_type == "knkarthick/samsum"
    for one in parsed:
        assert one.metric_args["adapter_digest"] == DIGEST
        assert one.metric_args["variant"] == "0-6"
        assert one.metric_args["confidence_interval_95"] == pytest.approx([28.865, 37.215], abs=1e-3)
    table = [line for line in card.splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 8 for line in table)
    assert len(table) == 4
    assert "K = 7 (`0-6`) | rouge_l | 33.0 ± 2.1 | 28.9 to 37.2 | 200 | 27.0 ± 1.5 |" in table[1]
    assert DIGEST in card
    assert "Keep the bottom 7 of 10 layers" in card
    settings = "adapter:abababab|K:7|by:best|base:cdcdcdcd|dtype:float32|task:gsm8k|version:1.0|n:200|fewshot:0"
    assert f"`{settings}|lm-eval:0.4.13|v:0.1.0`" in card


@pytest.fixture
def swept_adapter(tmp_path, tiny_adapter):
    """Results of two tasks whose adapter is the tiny one, K = 2 of 4 kept for the first."""
    found = results(["lora_drop_samsum", "gsm8k"])
    kept = {"num_layers": 4, "variant": "0-1", "kept_parameters": 10, "dropped_parameters": 10, "sweep": None}
    record = found["config"]["lora_drop"]
    record["tasks"]["lora_drop_samsum"] |= kept | {"method": "given"}
    record["adapter"] |= {"path": str(tiny_adapter), "fingerprint": open_adapter(str(tiny_adapter)).fingerprint()}
    return write_results(tmp_path / "out", found)


@pytest.mark.parametrize("merge", [False, True])
def test_an_exports_card_has_the_scores_of_what_it_holds_and_publish_finds_its_place(
    swept_adapter, tmp_path, capsys, merge
):
    new = tmp_path / "smaller"
    options = ["--results", str(swept_adapter), "--task", "lora_drop_samsum", "-o", str(new)]
    assert main(["export", *options, *(["--merge"] if merge else [])]) == 0
    card = (new / "README.md").read_text(encoding="utf-8")
    head = front(card)
    assert_fits({"model-index": head["model-index"]}, *template("model_index.yaml"))
    (parsed,) = ModelCard(card).data.eval_results
    assert (parsed.task_name, parsed.metric_type, parsed.metric_value) == ("lora_drop_samsum", "rouge_l", 33.04)
    assert parsed.metric_args["variant"] == "0-1"
    assert ModelCard(card).data.model_name == "smaller"
    assert "gsm8k" not in card
    assert "| rouge_l | 33.0 ± 2.1 |" in card
    assert ("before the LoRA was folded in" in card) == merge
    # The same place in the card: a later publish replaces it.
    again = made(tmp_path / "b", card=card)
    assert again.count(START) == again.count(END) == 1
    # The same from Python.
    from_python = tmp_path / "python" / "smaller"
    lora_drop.read(swept_adapter)["lora_drop_samsum"].export(from_python, merge=merge)
    said = ModelCard((from_python / "README.md").read_text(encoding="utf-8")).data
    assert [one.unique_identifier for one in said.eval_results] == [parsed.unique_identifier]
    assert said.eval_results == [parsed]


def test_an_export_claims_no_score_that_was_not_its_own(swept_adapter, tiny_base, tiny_adapter, tmp_path):
    """Nothing by hand, nothing of a run without scores, nothing with another base model."""

    def card(*options):
        new = tmp_path / f"new{len(list(tmp_path.iterdir()))}"
        assert main(["export", "-o", str(new), *options]) == 0
        return (new / "README.md").read_text(encoding="utf-8")

    of_run = ["--results", str(swept_adapter), "--task", "lora_drop_samsum"]
    assert "model-index" in card(*of_run)
    by_hand = ["--peft", str(tiny_adapter), "--boundary", "2", "--pretrained", str(tiny_base)]
    assert "model-index" not in card(*by_hand)
    assert "model-index" not in card(*of_run, "--merge", "--pretrained", str(tiny_base))
    predicted = json.loads(swept_adapter.read_text())
    predicted["results"] = {name: {"alias": name} for name in predicted["results"]}
    swept_adapter.write_text(json.dumps(predicted))
    unscored = card(*of_run)
    assert "model-index" not in unscored
    assert START not in unscored


def test_results_go_into_a_card_once(tmp_path):
    old = "---\nlicense: mit\ntags: [mine]\n---\n# Mine\n\nText by hand.\n"
    once = made(tmp_path / "a", card=old)
    assert front(once)["license"] == "mit"
    assert front(once)["tags"] == ["mine", "lora", "lora-drop"]
    assert "Text by hand." in once
    better = results(score=44.0)
    twice = made(tmp_path / "b", better, card=once + "\nMore by hand.\n")
    assert twice.count(START) == twice.count(END) == 1
    assert "44.0 ± 2.1" in twice
    assert "33.0 ± 2.1" not in twice
    assert "Text by hand." in twice
    assert "More by hand." in twice
    assert front(made(tmp_path / "c", card="no front matter"))["library_name"] == "peft"
    for broken in ("---\na: [\n---\n", "---\n- a\n---\n", "---\na: 1\n"):
        with pytest.raises(ArgumentError, match="front matter"):
            made(tmp_path / "d", card=broken)


def test_the_interval_is_cut_where_the_metric_ends():
    assert interval("exact_match", Score(0.98, 0.02)) == (pytest.approx(0.9408, abs=1e-4), 1.0)
    assert interval("rouge_l", Score(0.98, 0.02))[1] > 1
    # Percentages under the same name are left alone.
    assert interval("f1", Score(98.0, 2.0))[1] > 100
    assert interval("f1", Score(0.5, None)) is None


def test_documents_that_all_score_alike_have_no_interval_of_a_point(tmp_path):
    """0 of 200 right has a standard error of 0, and is no proof that the next document is wrong."""
    assert interval("exact_match", Score(0.0, 0.0)) is None
    done = made(tmp_path, results(score=0.0, stderr=0.0))
    assert "| rouge_l | 0.000 ± 0.000 | - | 200 |" in done
    assert front(done)["model-index"][0]["results"][0]["metrics"][0]["args"].get("confidence_interval_95") is None


@pytest.fixture
def saved(tmp_path):
    return write_results(tmp_path / "out", results())


def test_a_dry_run_prints_the_card_and_writes_nothing(saved, capsys, monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert main(["publish", str(saved.parent)]) == 0
    out = capsys.readouterr().out
    assert front(out)["library_name"] == "peft"
    assert "Nothing was sent." in out
    assert not list(Path().iterdir())


def test_the_card_is_written_where_told(saved, tmp_path, capsys):
    assert main(["publish", str(saved), "-o", str(tmp_path / "new"), "--task", "gsm8k"]) == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["README.md"]
    assert "Nothing was sent." in capsys.readouterr().out
    assert "samsum" not in (tmp_path / "new" / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--push"], "--push needs --repo"),
        (["--create-pr"], "give both"),
        (["--repo", "smaller"], "OWNER/NAME"),
        (["--card", "nowhere.md"], "--card must be"),
        (["--task", "x"], "There are: gsm8k"),
    ],
)
def test_wrong_arguments_are_answered_with_the_way_out(saved, arguments, message, capsys):
    assert main(["publish", str(saved), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_run_of_another_model_type_or_without_scores_is_refused(tmp_path, capsys):
    write_results(tmp_path / "a", {"results": {"t": {"acc,none": 1.0}}, "config": {"model": "hf"}})
    assert main(["publish", str(tmp_path / "a")]) == 1
    assert "no run of hf-lora-drop" in capsys.readouterr().err
    empty = results()
    empty["results"] = {name: {"alias": name} for name in NAMES}
    write_results(tmp_path / "b", empty)
    assert main(["publish", str(tmp_path / "b")]) == 1
    assert "no score to publish" in capsys.readouterr().err


class Hub(BaseHTTPRequestHandler):
    """The two calls of the Hub that a commit makes; keeps what it was sent."""

    sent: list[tuple[str, bytes]]

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.sent.append((self.path, body))
        if "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            answer: dict[str, Any] = {"files": files}
        else:
            answer = {"success": True, "commitOid": "0" * 40, "commitUrl": "https://huggingface.co/me/smaller/commit/0"}
        text = json.dumps(answer).encode()
        self.send_response(200 if "missing" not in self.path else 404)
        if "missing" in self.path:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub():
    handler = type("ThisHub", (Hub,), {"sent": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler.sent
    server.shutdown()
    thread.join()


def publish(address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_test"}
    code = (
        "import sys; from lm_eval_lora_drop.commands import main\n"
        "main.COMMANDS = ('lm_eval_lora_drop.commands.publish',)\n"
        "sys.exit(main.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "publish", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_push_sends_the_card_in_one_commit_and_only_when_asked(saved, hub):
    address, sent = hub
    assert publish(address, str(saved), "--repo", "me/smaller").returncode == 0
    assert sent == []
    done = publish(address, str(saved), "--repo", "me/smaller", "--push")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "Sent: https://huggingface.co/me/smaller/commit/0"
    (body,) = [body for path, body in sent if path.startswith("/api/models/me/smaller/commit/main")]
    lines = [json.loads(line) for line in body.splitlines()]
    files = {one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines if one["key"] == "file"}
    assert set(files) == {"README.md"}
    assert DIGEST.encode() in files["README.md"]


def test_a_repository_that_does_not_exist_is_said(saved, hub):
    done = publish(hub[0], str(saved), "--repo", "me/missing", "--push")
    assert done.returncode == 1
    assert "no model repository that you may write to" in done.stderr
    assert "Traceback" not in done.stderr
