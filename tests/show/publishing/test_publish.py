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

import jsonschema
import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

import lm_eval_lora_drop as lora_drop
from lm_eval_lora_drop.adapter.files import open_adapter
from lm_eval_lora_drop.commands.main import main
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.find import read_run
from lm_eval_lora_drop.record.runs import Score
from lm_eval_lora_drop.show.publishing.common import Publisher, interval
from lm_eval_lora_drop.show.publishing.publication import END, START, publication
from testing.recorded_runs import results_of, run_record, sweep_record, task_record, write_results

SCHEMAS = Path(__file__).parent / "schemas"
DIGEST = "sha256:" + "ab" * 32
WHO = Publisher("me/smaller", "me", "first_party", 1_767_300_000.0)
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


def made(folder: Path, found: dict[str, Any] | None = None, publisher: Publisher = WHO, **options: Any):
    run = read_run(write_results(folder, results() if found is None else found))
    return publication(run, publisher, **options)


def front(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def the_record(files: dict[str, str]) -> dict[str, Any]:
    (text,) = [text for name, text in files.items() if name.startswith("every_eval_ever/")]
    return json.loads(text)


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
    card = made(tmp_path).files["README.md"]
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
    again = made(tmp_path / "b", card=card).files["README.md"]
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
    once = made(tmp_path / "a", card=old).files["README.md"]
    assert front(once)["license"] == "mit"
    assert front(once)["tags"] == ["mine", "lora", "lora-drop"]
    assert "Text by hand." in once
    better = results(score=44.0)
    twice = made(tmp_path / "b", better, card=once + "\nMore by hand.\n").files["README.md"]
    assert twice.count(START) == twice.count(END) == 1
    assert "44.0 ± 2.1" in twice
    assert "33.0 ± 2.1" not in twice
    assert "Text by hand." in twice
    assert "More by hand." in twice
    assert front(made(tmp_path / "c", card="no front matter").files["README.md"])["library_name"] == "peft"
    for broken in ("---\na: [\n---\n", "---\n- a\n---\n", "---\na: 1\n"):
        with pytest.raises(ArgumentError, match="front matter"):
            made(tmp_path / "d", card=broken)


def test_the_hubs_evaluation_file_is_for_registered_datasets_on_their_whole_split(tmp_path):
    done = made(tmp_path / "a")
    assert [name for name in done.files if name.startswith(".eval")] == [".eval_results/gsm8k.yaml"]
    entries = yaml.safe_load(done.files[".eval_results/gsm8k.yaml"])
    assert_fits(entries, *template("eval_results.yaml"))
    (entry,) = parse_eval_result_entries(entries)
    assert (entry.dataset_id, entry.task_id, entry.date) == ("openai/gsm8k", "gsm8k", "2026-01-01")
    assert entry.value == 3304.0  # the made-up score of 33.04, as a percentage
    for said in (DIGEST, "0-6", "K = 7", "rouge_l", "95 % interval 2887 to 3721", "0-shot"):
        assert said in entry.notes
    assert sum("has no leaderboard" in note for note in done.notes) == 2
    some = results()
    some["n-samples"]["gsm8k"]["effective"] = 199
    done = made(tmp_path / "b", some)
    assert not [name for name in done.files if name.startswith(".eval")]
    assert any("199 of 200 documents" in note for note in done.notes)
    local = results()
    local["configs"]["gsm8k"]["dataset_kwargs"] = {"data_dir": "/somewhere"}
    assert not [name for name in made(tmp_path / "c", local).files if name.startswith(".eval")]


@pytest.mark.parametrize("stderr", [2.13, "N/A"])
@pytest.mark.parametrize("repo", [None, "me/smaller"])
def test_the_every_eval_ever_record_fits_its_schema(tmp_path, stderr, repo):
    schema = json.loads((SCHEMAS / "eval.schema.json").read_text(encoding="utf-8"))
    validator = jsonschema.validators.validator_for(schema)(schema)
    who = Publisher(repo, "me", "first_party", 1.0)
    record = the_record(made(tmp_path, results(stderr=stderr), who).files)
    assert list(validator.iter_errors(record)) == []
    assert record["schema_version"] == schema["version"]
    assert record["model_info"]["id"] == (repo or "mine")
    assert record["model_info"]["additional_details"]["adapter_digest"] == DIGEST
    found = {one["evaluation_result_id"]: one for one in record["evaluation_results"]}
    # `words` has no direction: it is no score.
    assert len(found) == 2 * len(NAMES)
    rouge, exact = found["lora_drop_samsum/rouge_l/none"], found["lora_drop_samsum/exact_match/strict"]
    assert rouge["score_details"]["details"]["variant"] == "0-6"
    assert rouge["score_details"]["details"]["adapter_digest"] == DIGEST
    assert rouge["score_details"]["details"]["chosen_on_documents"] == "32"
    assert ("standard_error" in rouge["score_details"]["uncertainty"]) == (stderr != "N/A")
    assert exact["score_details"]["uncertainty"]["confidence_interval"]["upper"] == 1.0
    assert exact["metric_config"]["max_score"] == 1.0
    assert rouge["source_data"]["hf_repo"] == "knkarthick/samsum"
    assert rouge["generation_config"]["generation_args"] == {"temperature": 0.0, "max_tokens": 96}


def test_publishing_twice_gives_the_same_file_names(tmp_path):
    first = made(tmp_path).files
    assert list(first) == list(made(tmp_path, publisher=Publisher("me/smaller", "me", "first_party", 9.0)).files)
    other = results()
    other["config"]["lora_drop"]["fingerprint"] = "sha256:another"
    assert list(first) != list(made(tmp_path / "b", other).files)


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
    assert "| rouge_l | 0.000 ± 0.000 | - | 200 |" in done.files["README.md"]
    assert (
        front(done.files["README.md"])["model-index"][0]["results"][0]["metrics"][0]["args"].get(
            "confidence_interval_95"
        )
        is None
    )
    found = {one["evaluation_result_id"]: one for one in the_record(done.files)["evaluation_results"]}
    uncertainty = found["lora_drop_samsum/rouge_l/none"]["score_details"]["uncertainty"]
    assert "confidence_interval" not in uncertainty


@pytest.fixture
def saved(tmp_path):
    return write_results(tmp_path / "out", results())


def test_dry_run_shows_everything_and_writes_nothing(saved, capsys, monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert main(["publish", str(saved.parent)]) == 0
    out = capsys.readouterr().out
    shown = re.findall(r"^==> (.*)$", out, re.M)
    assert shown[:2] == ["README.md", ".eval_results/gsm8k.yaml"]
    assert re.fullmatch(r"every_eval_ever/[0-9a-f-]{36}\.json", shown[2])
    assert "Nothing was sent." in out
    assert not list(Path().iterdir())


def test_files_are_written_where_told(saved, tmp_path, capsys):
    assert main(["publish", str(saved), "-o", str(tmp_path / "new"), "--task", "gsm8k"]) == 0
    written = {str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert {"README.md", ".eval_results/gsm8k.yaml"} < written
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


def test_push_sends_the_files_in_one_commit_and_only_when_asked(saved, hub):
    address, sent = hub
    assert publish(address, str(saved), "--repo", "me/smaller").returncode == 0
    assert sent == []
    done = publish(address, str(saved), "--repo", "me/smaller", "--push")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "Sent: https://huggingface.co/me/smaller/commit/0"
    (body,) = [body for path, body in sent if path.startswith("/api/models/me/smaller/commit/main")]
    lines = [json.loads(line) for line in body.splitlines()]
    files = {one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines if one["key"] == "file"}
    assert {"README.md", ".eval_results/gsm8k.yaml"} < set(files)
    assert DIGEST.encode() in files["README.md"]


def test_a_repository_that_does_not_exist_is_said(saved, hub):
    done = publish(hub[0], str(saved), "--repo", "me/missing", "--push")
    assert done.returncode == 1
    assert "no model repository that you may write to" in done.stderr
    assert "Traceback" not in done.stderr
