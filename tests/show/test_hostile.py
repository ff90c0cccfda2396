"""One hostile run on every way out: nothing that a terminal or a page obeys comes through, and no markup acts."""

import json
import logging
import re
from types import SimpleNamespace

import pytest
import yaml

import lm_eval_lora_drop
from lm_eval_lora_drop.commands.main import main
from lm_eval_lora_drop.files import package_folder
from lm_eval_lora_drop.show.listeners.screen import render_run
from lm_eval_lora_drop.text import logger
from testing.run_files import swept, write_run

# Every character that steers: C0 and C1 without tab and line feed, embeddings, overrides, isolates, separators.
STEERING = [chr(code) for code in [*range(9), *range(11, 32), *range(0x7F, 0xA0)]]
STEERING += [chr(code) for code in [*range(0x2028, 0x202F), *range(0x2066, 0x2070), 0xFEFF]]
ATTACK = (
    "x" + "".join(STEERING) + "\x1b]0;title\x07<img src=x onerror=alert(1)>[click](http://127.0.0.1/)|`a`[red]z[/red]"
)
SEEN = re.compile("[" + "".join(map(re.escape, STEERING)) + "]")


def poisoned(value):
    """Every text of a record, but those that are notations the reader insists on, with the attack behind it."""
    if isinstance(value, dict):
        kept = {"variant", "chosen", "best", "method", "strategy", "engine", "aggregation", "select", "candidate_set"}
        return {key: one if key in kept else poisoned(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [poisoned(one) for one in value]
    return f"{value}{ATTACK}" if isinstance(value, str) else value


@pytest.fixture
def run(tmp_path):
    entry = swept()
    task = entry["tasks"]["t"]
    poison = poisoned({key: value for key, value in entry.items() if key != "tasks"})
    poison["tasks"] = {"t": poisoned({**task, "metric": None}) | {"metric": task["metric"]}}
    poison["tasks"]["t"]["sweep"]["warnings"] = [ATTACK]
    texts = [f"{ATTACK} {i}" for i in range(3)]
    name = ATTACK.replace("/", "_")
    path = write_run(
        tmp_path / "run", {"exact_match": [0.0, 1.0, 1.0]}, name=name, outputs=texts, targets=texts, prompt=ATTACK,
        lora_drop=poison, scores={"exact_match": 0.5},
    )  # fmt: skip
    data = json.loads(path.read_text())
    data["lm_eval_version"] = f"0.4.13{ATTACK}"
    data["results"]["t"]["exact_match_stderr,none"] = 0.1
    path.write_text(json.dumps(data))
    other = write_run(tmp_path / "other", {"exact_match": [1.0, 1.0, 0.0]}, name="other")
    return path, other


WAYS = {
    "compare": "compare {run} {other} --json {out}",
    "compare backwards": "compare {other} l={run} --json {out}",
    "stability": "stability {run} --json {out}",
    "plan": "plan {run} --json {out}",
    "pilot": "plan --pilot {run} {other} --json {out}",
    "report": "report {run} {other} -o {out}",
    "leaderboard": "leaderboard {run} {other}",
    **{f"leaderboard {name}": f"leaderboard {{run}} {{other}} --format {name} -o {{out}}"
       for name in ("text", "markdown", "latex", "csv", "html")},
    "publish": "publish {run}",
    "publish to files": "publish {run} -o {out}",
    "figures": "figures {run} -o {out} --formats svg",
    "an error": "report {run} --baseline nothing -o {out}",
}  # fmt: skip


@pytest.mark.parametrize("words", WAYS.values(), ids=WAYS)
def test_no_way_out_passes_on_what_steers(words, run, tmp_path, capsys, caplog):
    path, other = run
    out = tmp_path / "written"
    main(words.format(run=path, other=other, out=out).split(" "))
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    written = [out] if out.is_file() else [one for one in out.rglob("*") if one.is_file()] if out.exists() else []
    texts = {"stdout": said.out, "stderr": said.err, "log": caplog.text}
    texts |= {str(one.relative_to(tmp_path)): one.read_text(encoding="utf-8") for one in written}
    assert any(texts.values())
    for name, text in texts.items():
        assert not SEEN.search(text), (name, text[max(0, SEEN.search(text).start() - 60) :][:100])
        if re.search("html|report", words) and name == "written":
            assert "<img src=x" not in text
        if name.endswith(".md") or ("markdown" in words and name == "written"):
            body = re.sub(r"`[^`\n]*`", "", text.rpartition("---\n")[2])
            assert not re.search(r"(?<!\\)<img", body)
            assert not re.search(r"(?<!\\)\[click", body)


def test_the_screen_of_lm_eval(run):
    data = json.loads(run[0].read_text())
    text = render_run(data, SimpleNamespace(output_path=None, date_id=None))
    assert "click" in text
    assert not SEEN.search(text)
    assert "[red]z[/red]" in text


def test_the_front_matter_of_a_card_is_yaml(run, tmp_path):
    assert main(["publish", str(run[0]), "-o", str(tmp_path / "card")]) == 0
    _, front, _ = (tmp_path / "card" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "peft"


def test_a_log_record_and_the_loggers_there_are(caplog):
    log = logger("lm_eval_lora_drop.of_this_test")
    log.setLevel(logging.INFO)
    log.warning("judge %s says %s", "a\0b", ATTACK)
    assert not SEEN.search(caplog.text)
    assert "judge a\\u0000b says x" in caplog.text
    package = package_folder("tasks").parent / "lm_eval_lora_drop"
    assert package.samefile(next(iter(lm_eval_lora_drop.__path__)))
    plain = [file for file in package.rglob("*.py") if re.search(r"log = logging\.getLogger", file.read_text())]
    assert [file.name for file in plain] == ["health.py"]  # another library's
