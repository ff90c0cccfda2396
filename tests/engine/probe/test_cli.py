"""`lora-drop probe` as a user runs it, on a tiny model and a task in a folder of its own."""

import json

import pytest

from lm_eval_lora_drop.commands.main import main
from testing.toy import write_task


@pytest.fixture
def arguments(tmp_path, tiny_base, tiny_adapter):
    """The command with a task of 8 validation documents, one of which is also evaluated."""

    def make(*more, test_split="test"):
        folder = tmp_path / "tasks"
        rows = [{"question": f"the question {i}", "answer": f"the answer {i}"} for i in range(15)]
        write_task(folder, "probe_toy", {"validation": rows[:8], "test": rows[7:]}, test_split=test_split)
        command = ["probe", "--pretrained", str(tiny_base), "--peft", str(tiny_adapter), "--task", "probe_toy"]
        command += ["--include_path", str(folder), "--output", str(tmp_path / "out"), "--device", "cpu"]
        return [*command, "--formats", "png", *more]

    return make


def test_it_writes_the_record_the_table_and_the_figures(arguments, tmp_path, capsys):
    assert main(arguments("--boundary", "3", "--boundary", "base", "--layers", "0+2", "--tokens", "2")) == 0
    out = tmp_path / "out"
    record = json.loads((out / "probe.json").read_text(encoding="utf-8"))
    assert record["task"] == "probe_toy"
    assert record["split"] == "validation"
    assert sorted(record["doc_ids"]) == list(range(7))
    assert [one["reason"] for one in record["left_out"]] == ["equals an evaluated document"]
    assert record["adapter"]["fingerprint"].startswith("sha256:")
    assert [curve["name"] for curve in record["probe"]["curves"]] == ["full", "K = 3", "base", "0+2"]
    assert record["probe"]["tokens"] == 2
    table = (out / "probe.txt").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert table in printed
    figures = ["difference", "maximum", "rise", "tokens"]
    assert sorted(path.name for path in out.glob("*.png")) == [f"probe-{name}-probe_toy.png" for name in figures]
    assert all(str(path) in printed for path in out.iterdir())
    # Drawn again from the file, in another format; one that was edited is named.
    again = tmp_path / "again"
    assert main(["figures", str(out / "probe.json"), "-o", str(again), "--formats", "svg"]) == 0
    assert sorted(path.name for path in again.iterdir()) == [f"probe-{name}-probe_toy.svg" for name in figures]
    # A folder that cannot be is the folder's fault, not the file's.
    (tmp_path / "file").write_text("")
    assert main(["figures", str(out / "probe.json"), "-o", str(tmp_path / "file" / "below")]) == 1
    assert "cannot be written" in capsys.readouterr().err
    del record["probe"]["curves"]
    (out / "probe.json").write_text(json.dumps(record), encoding="utf-8")
    assert main(["figures", str(out / "probe.json")]) == 1
    assert "is damaged or was edited" in capsys.readouterr().err


def test_without_a_boundary_it_reads_its_own(arguments, tmp_path):
    """A random model has no rise, so that is the full adapter; base is always read."""
    assert main(arguments()) == 0
    record = json.loads((tmp_path / "out" / "probe.json").read_text(encoding="utf-8"))
    assert [curve["name"] for curve in record["probe"]["curves"]] == ["full", "base"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--boundary", "auto"], "run lm_eval with boundary=auto"),
        (["--boundary", "9"], "boundary must be an integer from 0 to 4"),
        (["--layers", "4"], "layers must lie in 0..3"),
        (["--task", "no_such_task"], "--task must name one lm-eval task"),
        (["--limit", "1"], "at least two documents"),
        (["--formats", "gif"], "png, svg, pdf, got gif"),
    ],
)
def test_what_cannot_work_is_refused_with_the_way_out(more, message, arguments, capsys):
    assert main(arguments(*more)) == 1
    assert message in capsys.readouterr().err


def test_a_number_of_tokens_is_refused_by_the_parser(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments("--tokens", "0"))
    assert "--tokens: must be an integer from 1" in capsys.readouterr().err


def test_a_task_without_other_documents_than_the_evaluated_is_refused(arguments, capsys):
    assert main(arguments(test_split=None)) == 1
    assert "nothing to probe" in capsys.readouterr().err
