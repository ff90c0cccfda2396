"""Rescoring runs as lm_eval writes them, with whatever a model can put into a text."""

import json

import pytest
import yaml

from lm_eval_lora_drop.commands.main import main
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.judge.score import Item
from lm_eval_lora_drop.judge.task import read_items, save_items
from testing.judge_servers import Say, score_json
from testing.judged_runs import write_judged

OUTPUTS = [
    "one\u2028two\u2029three",
    "next\x85line\x0b\x0c\x1c\x1e",
    "half a pair \ud83d",
    "\udcff",
    "plain 中文",
    "nul \x00",
]


@pytest.fixture
def run(tmp_path, serve):
    """A run whose samples are written as the harness does it (ensure_ascii=False), with bytes that are no UTF-8."""
    server = serve(lambda request, nth: Say(score_json(len(server.requests) % 11)))
    path = write_judged(tmp_path / "run", OUTPUTS, name="system")
    (samples,) = (tmp_path / "run").glob("samples_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().split("\n") if line]
    lines = [json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") for row in rows]
    lines[4] = lines[4].replace("中".encode(), b"\xff\xfe")
    samples.write_bytes(b"\n".join([*lines, b'{"torn": ', b""]) + b"\n")
    panel = tmp_path / "panel.yaml"
    panel.write_text(yaml.safe_dump({"judges": [server.judge("openai")], "backoff": 0.01}))
    return path, samples, panel, server


def test_every_line_is_scored_once_and_written_back(run, capsys):
    path, samples, panel, server = run
    before = samples.read_bytes().split(b"\n")
    for _ in range(2):
        assert main(["judge", "rescore", str(path), "--panel", str(panel)]) == 0
        assert len(server.requests) == len(OUTPUTS)
    assert "calls, $0.0000 where prices are known; with earlier runs 6 calls, $0.0008" in capsys.readouterr().out
    after = samples.read_bytes().split(b"\n")
    assert len(after) == len(before)
    assert after[6] == before[6] == b'{"torn": '
    rows = [json.loads(line.decode("utf-8", "surrogateescape")) for line in after[:6]]
    assert all(row["metrics"][-2:] == ["gpt_score", "gpt_score_openai-judge"] for row in rows)
    given = [json.loads(line.decode("utf-8", "surrogateescape"))["filtered_resps"] for line in before[:6]]
    assert [row["filtered_resps"] for row in rows] == given
    data = json.loads(path.read_text())
    assert data["results"]["t"]["gpt_score_verdicts,none"] == 6
    assert data["configs"]["t"]["metadata"]["gpt_score"]["calls_before"] == 6


def test_samples_behind_a_symbolic_link_are_not_read_and_nothing_is_paid(run, tmp_path, capsys):
    path, samples, panel, server = run
    moved = samples.rename(tmp_path / "elsewhere.jsonl")
    samples.symlink_to(moved)
    assert main(["judge", "rescore", str(path), "--panel", str(panel)]) == 1
    assert "no logged samples" in capsys.readouterr().err
    assert server.requests == []


@pytest.mark.parametrize(
    "judge", [{"kind": "poem", "source": "question"}, {"kind": "summary", "source": "nope"}, {"kind": "summary"}, {}]
)
def test_a_task_that_says_too_little_is_refused_in_a_line(run, judge, capsys):
    path, _, panel, server = run
    data = json.loads(path.read_text())
    data["configs"]["t"]["metadata"] = {"judge": judge}
    path.write_text(json.dumps(data))
    assert main(["judge", "rescore", str(path), "--panel", str(panel)]) == 1
    assert "metadata.judge" in capsys.readouterr().err
    assert server.requests == []


def test_saved_outputs_are_read_back_whatever_stands_in_them(tmp_path):
    items = [Item("summary", text, text, text) for text in OUTPUTS]
    assert read_items(save_items(tmp_path, "a/b" * 200, items)) == items


@pytest.mark.parametrize(
    "line",
    [
        "",
        "7",
        "{",
        '{"kind": "summary"}',
        '{"kind": "poem", "source": "", "reference": "", "prediction": ""}',
        '{"kind": "summary", "source": 5, "reference": "", "prediction": ""}',
        '{"kind": "summary", "source": "", "reference": "", "prediction": "", "more": ""}',
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, line):
    (tmp_path / "x.jsonl").write_text(line + "\n")
    with pytest.raises(ArgumentError, match=r"x\.jsonl"):
        read_items(tmp_path / "x.jsonl")


def test_a_full_disk_leaves_no_half_list_of_outputs(tmp_path, small_disk):
    """One that ended between two lines would be read as one of fewer outputs."""
    items = [Item("summary", "s" * 100, "r", f"p{i}") for i in range(500)]
    with small_disk(20_000), pytest.raises(ArgumentError, match="cannot be written"):
        save_items(tmp_path / "judged", "t", items)
    assert list((tmp_path / "judged").iterdir()) == []


def test_who_may_read_the_results_stays_as_it_was(run):
    path, samples, panel, _ = run
    for file in (path, samples):
        file.chmod(0o640)
    assert main(["judge", "rescore", str(path), "--panel", str(panel)]) == 0
    assert [file.stat().st_mode & 0o777 for file in (path, samples)] == [0o640] * 2


def test_a_full_disk_leaves_the_results_and_says_that_the_answers_are_kept(run, small_disk, capsys):
    path, samples, panel, server = run
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "padding": "x" * 600_000}))  # more than the cache takes
    before = path.read_bytes(), samples.read_bytes()
    assert main(["judge", "rescore", str(path), "--panel", str(panel)]) == 0
    path.write_bytes(before[0])
    samples.write_bytes(before[1])
    with small_disk(500_000):
        code = main(["judge", "rescore", str(path), "--panel", str(panel), "--offline"])
    assert code == 1
    assert "File too large). The answers are in the judges' cache: make room" in capsys.readouterr().err
    assert path.read_bytes() == before[0]
    assert len(server.requests) == len(OUTPUTS)
