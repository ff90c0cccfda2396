"""No command destroys what it reads or what a run has written; what was found is kept whatever happens to a screen."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lm_eval_lora_drop.commands.main import main
from lm_eval_lora_drop.files import write_atomically
from testing.forked import Forked
from testing.run_files import swept, write_run

JOURNAL_LINE = b'{"schema": 1, "task": "t", "fingerprint": "f", "settings": {}, "versions": {}, "crc": 1}\n'


@pytest.fixture
def files(tmp_path):
    one = write_run(tmp_path / "one", {"acc": [0.0, 1.0, 1.0]}, name="one", lora_drop=swept())
    two = write_run(tmp_path / "two", {"acc": [1.0, 1.0, 0.0]}, name="two", lora_drop=swept())
    (tmp_path / "my.jsonl").write_bytes(JOURNAL_LINE)
    (tmp_path / "t-0123456789ab.rank0.jsonl").write_bytes(b"damaged\n")
    shutil.copy(one, tmp_path / "mine.json")
    shutil.copy(next(one.parent.glob("samples_*")), tmp_path / "words.txt")
    for name in ("adapter_model.safetensors", "adapter_config.json", "task.yaml"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "torn.json").write_text(one.read_text()[:200])
    (tmp_path / "link.json").symlink_to(one)
    os.link(tmp_path / "torn.json", tmp_path / "hard.json")
    (tmp_path / "bom.json").write_text(one.read_text(), encoding="utf-8-sig")
    return tmp_path, one, two


WRITERS = {
    "report": ["report", "{one}", "{torn}", "-o"],
    "leaderboard": ["leaderboard", "{one}", "{torn}", "--output"],
    "compare": ["compare", "label={one}", "{two}", "--json"],
    "stability": ["stability", "{one}", "{torn}", "--json"],
    "plan": ["plan", "{one}", "{torn}", "--json"],
    "pilot": ["plan", "--pilot", "x={one}", "{two}", "--json"],
}
VICTIMS = {
    "input": "{one}",
    "its link": "{folder}/link.json",
    "samples": "{samples}",
    "samples by content": "{folder}/words.txt",
    "results by content": "{folder}/mine.json",
    "results with a BOM": "{folder}/bom.json",
    "journal by content": "{folder}/my.jsonl",
    "journal by name": "{folder}/t-0123456789ab.rank0.jsonl",
    "an adapter": "{folder}/adapter_model.safetensors",
    "its configuration": "{folder}/adapter_config.json",
    "a task": "{folder}/task.yaml",
}


PAIRS = [*zip(WRITERS, VICTIMS, strict=False), *zip(reversed(WRITERS), reversed(VICTIMS), strict=False)]
assert {victim for _, victim in PAIRS} == set(VICTIMS)


@pytest.mark.parametrize(("writer", "victim"), PAIRS)
def test_nothing_of_a_run_is_overwritten(writer, victim, files, capsys):
    folder, one, two = files
    names = {"one": one, "two": two, "folder": folder, "torn": folder / "torn.json"}
    names["samples"] = next(one.parent.glob("samples_*"))
    path = VICTIMS[victim].format(**names)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert main([word.format(**names) for word in WRITERS[writer]] + [path]) == 1
    said = capsys.readouterr().err
    assert path in said
    assert "would destroy it" in said
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_an_input_that_is_no_results_file_any_more_is_kept_too(files, capsys):
    folder, one, _ = files
    torn = folder / "torn.json"
    for path in (torn, folder / "hard.json"):
        assert main(["report", str(one), str(torn), "-o", str(path)]) == 1
    assert "an input of this command" in capsys.readouterr().err
    assert torn.read_text() == one.read_text()[:200]


def test_what_a_command_wrote_is_written_again(files):
    folder, one, two = files
    for words, name in (
        (["report", one, "-o"], "page.html"),
        (["leaderboard", one, two, "--format", "csv", "-o"], "table.csv"),
        (["compare", one, two, "--json"], "c.json"),
        (["stability", one, "--json"], "s.json"),
        (["plan", one, "--json"], "p.json"),
    ):
        for _ in range(2):
            assert main([str(word) for word in [*words, folder / name]]) == 0
        assert (folder / name).stat().st_size > 100


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_output_is_written_and_printed_in_any_encoding(encoding, tmp_path):
    name = "模型 ± \ud800 é"
    runs = [
        write_run(tmp_path / label, {"acc": [0.0, 1.0, 1.0]}, name=name + label, lora_drop=swept()) for label in "ab"
    ]
    for words in (["compare", *runs], ["plan", runs[0]], ["stability", runs[0]]):
        command = ["-m", "lm_eval_lora_drop.commands.main", *words, "--json", tmp_path / "x.json"]
        process = Forked(command, said=tmp_path / "said", PYTHONIOENCODING=encoding)
        assert process.wait() == 0
        said = (tmp_path / "said").read_bytes()
        assert b"Traceback" not in said
        assert said.decode(encoding)
        assert json.loads((tmp_path / "x.json").read_text())


def test_output_is_written_before_it_is_printed(files):
    """The reader of the screen has gone: the file is there all the same."""
    folder, one, two = files
    for words in (["compare", one, two], ["plan", one], ["stability", one]):
        target = folder / "out.json"
        target.unlink(missing_ok=True)
        command = ["-m", "lm_eval_lora_drop.commands.main", *words, "--json", target]
        Forked(command, said=Path("/dev/full"), PYTHONUNBUFFERED="1").wait()
        assert json.loads(target.read_text())


def test_output_that_was_closed_is_no_traceback(files):
    """`>&-`: Python has no standard output then."""
    folder, one, two = files
    words = ["-m", "lm_eval_lora_drop.commands.main", "compare", str(one), str(two), "--json", str(folder / "c.json")]
    command = [sys.executable, *words]
    ended = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *command], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads((folder / "c.json").read_text())


def test_a_figure_that_cannot_be_written_costs_a_warning(tiny_adapter, tmp_path, capsys, caplog):
    (tmp_path / "out" / "layers.png").mkdir(parents=True)
    assert main(["layers", "--peft", str(tiny_adapter), "-o", str(tmp_path / "out")]) == 0
    assert "layer" in capsys.readouterr().out
    assert "A figure could not be written" in caplog.text
    assert "the same command draws it again" in caplog.text  # lora-drop figures cannot
    assert json.loads((tmp_path / "out" / "layers.json").read_text())["scores"]


def test_two_outputs_are_two_files(files, capsys):
    """No command has two today that could be the same; the rule is looked at where it stands."""
    import argparse

    from lm_eval_lora_drop.commands.options import add_json, add_output, check_written
    from lm_eval_lora_drop.errors import ArgumentError

    folder, *_ = files
    parser = argparse.ArgumentParser()
    add_output(parser, "-o", "--output")
    add_json(parser)
    args = parser.parse_args(["-o", str(folder / "x"), "--json", str(folder / "." / "x")])
    with pytest.raises(ArgumentError, match="a file of its own"):
        check_written(args)
    write_atomically(folder / "y", "y")
    check_written(parser.parse_args(["-o", str(folder / "x"), "--json", str(folder / "y")]))
