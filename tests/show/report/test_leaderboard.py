"""`lora-drop leaderboard`: what is comparable is ranked and tested, the rest is shown apart; five formats."""

import csv
import html
import io
import json
import re

import numpy as np
import pytest

from lm_eval_lora_drop.commands import main as cli
from lm_eval_lora_drop.show.report.compare import compare
from lm_eval_lora_drop.show.report.leaderboard import leaderboard
from lm_eval_lora_drop.show.report.leaderboard_text import FORMATS
from lm_eval_lora_drop.show.report.page import write_report
from lm_eval_lora_drop.show.report.systems import open_system
from lm_eval_lora_drop.text import p_value
from testing.run_files import swept, write_run


@pytest.fixture
def runs(tmp_path):
    """Three systems on two tasks; the third lacks one."""
    for name, right, cost in (("low", 5, 3.0), ("base_line", 10, 2.0), ("high", 19, 1.0)):
        write_run(tmp_path / name, {"em": [float(i < right) for i in range(20)]}, name=name, task="qa")
        if name != "high":
            write_run(
                tmp_path / name,
                {"cost": [cost + i / 100 for i in range(20)]},
                name=name,
                task="mt",
                date="2026-01-02T00-00-00.000000",
                higher={"cost": False},
            )
    return tmp_path


def test_ranks_marks_and_order(runs):
    """Mean rank by each metric's direction, over the tasks that all have; Holm over a pair's tasks, doubled marks over
    all."""
    table = leaderboard([runs], baseline="base")
    assert [column.title for column in table.columns] == ["qa em ↑", "mt cost ↓"]
    cells = {line.system: line.cells for line in table.lines}
    assert [(line.system, line.mean_rank) for line in table.lines] == [("high", 1.0), ("base_line", 2.0), ("low", 3.0)]
    assert [(line.system, line.mean_rank) for line in leaderboard([runs / "low", runs / "base_line"]).lines] == [
        ("base_line", 1.0),
        ("low", 2.0),
    ]
    assert table.tests == 3
    assert cells["high"]["qa"].mark == "**"
    assert cells["low"]["mt"].mark == "††"
    # 5 lost, none gained: McNemar p = 0.0625, not significant.
    assert cells["low"]["qa"].p_holm == pytest.approx(0.0625)
    assert cells["low"]["qa"].mark == ""
    assert cells["base_line"]["mt"].best
    assert not cells["base_line"]["qa"].best


def test_a_pair_has_one_p(tmp_path):
    """Compare on two systems, compare on all, leaderboard and report page: the same p-value, the same verdict.

    Four systems, two tasks with two metrics each; 0/1, sparse and dense differences.
    """
    rng = np.random.default_rng(4)
    base = rng.integers(0, 2, 40).astype(float).tolist()
    for index, name in enumerate(("base", "near", "far", "odd")):
        em = [1.0 - v if i < 4 * index and v == 0 else v for i, v in enumerate(base)]
        f1 = np.clip(np.array(base) + (rng.normal(0.05 * index, 0.2, 40) if index else 0), 0, 2).tolist()
        write_run(tmp_path / name, {"em": em, "f1": f1}, name=name, task="qa")
        if name != "odd":
            date = "2026-01-02T00-00-00.000000"
            write_run(tmp_path / name, {"f1": f1, "em": em}, name=name, task="mt", date=date)
    table = leaderboard([tmp_path], baseline="base")
    cells = {(line.system, task): cell for line in table.lines for task, cell in line.cells.items() if cell}
    page, _ = write_report([tmp_path], baseline="base", documents=0)
    systems = {name: open_system(str(tmp_path / name))[0] for name in ("base", "near", "far", "odd")}
    everything = compare(list(systems.values()))
    assert table.tests == everything.tests == 5
    seen = 0
    for name in ("near", "far", "odd"):
        alone = {task.task: task for task in compare([systems["base"], systems[name]]).tasks}
        for task in everything.tasks:
            for row in (row for row in task.metrics if row.other == name and row.represents):
                (single,) = [r for r in alone[task.task].metrics if r.represents]
                cell = cells[name, task.task]
                assert single.p_value == row.p_value
                assert single.p_holm == pytest.approx(row.p_holm, rel=1e-12)
                assert row.p_holm == pytest.approx(cell.p_holm, rel=1e-12)
                assert row.p_table == cell.p_table
                assert bool(cell.mark) == (row.p_holm < 0.05)
                table = page.partition(f'aria-label="All systems, {task.task}"')[2].partition("</table>")[0]
                (line,) = re.findall(rf'<th scope="row">{name}</th>(.*?)</tr>', table)
                said = re.findall("<td>(.*?)</td>", line)
                assert said[5:7] == [p_value(row.p_holm), p_value(row.p_table)]
                assert said[3] == row.cells["difference"]
                seen += 1
    assert seen == 5
    assert any(cell.mark for cell in cells.values())


def test_standard_errors_by_cluster(tmp_path):
    """Twelve documents on three passages, all alike within: the standard error is that of three, not of twelve."""
    docs = [{"question": str(i), "passage": f"p{i // 4}"} for i in range(12)]
    values = {"em": [1.0] * 4 + [0.0] * 4 + [1.0] * 4}
    write_run(tmp_path / "a", values, name="a", docs=docs, metadata={"cluster": "passage"})
    (line,) = leaderboard([tmp_path]).lines
    assert line.cells["t"].stderr == pytest.approx(np.std([1, 0, 1], ddof=1) / np.sqrt(3))


def test_other_documents_are_bracketed(runs, capsys):
    """A run on fewer documents is shown in brackets, named, and neither ranked nor tested."""
    write_run(runs / "short", {"em": [1.0] * 5}, name="short", task="qa")
    table = leaderboard([runs], baseline="base")
    (short,) = [line for line in table.lines if line.system == "short"]
    assert (short.cells["qa"].comparable, short.mean_rank, short.cells["qa"].p_holm) == (False, None, None)
    assert any("short is in brackets and not ranked: 5 documents" in note for note in table.notes)
    assert cli.main(["leaderboard", str(runs)]) == 0
    said = capsys.readouterr()
    assert "[1.000]" in said.out
    assert "short" in said.err


def test_found_boundary_is_shown_and_newest_run_counts(tmp_path):
    write_run(tmp_path, {"em": [0.0, 0.0]}, name="a", lora_drop=swept())
    write_run(tmp_path, {"em": [1.0, 0.0]}, name="a", lora_drop=swept(), date="2026-02-01T00-00-00.000000")
    table = leaderboard([tmp_path])
    (line,) = table.lines
    assert line.system == "a boundary=auto"
    assert (line.cells["t"].score, line.cells["t"].boundary) == (0.5, 3)
    assert any("passed over for the newer run" in str(issue) for issue in table.issues)


def test_formats(runs):
    """Names are escaped for where they go; CSV has every number in full."""
    write_run(runs / "x", {"em": [1.0] * 20}, name="<b>&_|50%", task="qa")
    table = leaderboard([runs], baseline="base")
    shown = {name: show(table) for name, show in FORMATS.items()}
    assert r"\toprule" in shown["latex"]
    assert r"<b>\&\_|50\%" in shown["latex"]
    assert r"base\_line & 0.500 & \textbf{2.09} & 3.00" in shown["latex"]
    assert r"\<b\>&\_\|50%" in shown["markdown"]
    assert "**" in shown["markdown"]
    assert "&lt;b&gt;&amp;_|50%" in shown["html"]
    assert "<b>" not in shown["html"]
    rows = list(csv.DictReader(io.StringIO(shown["csv"])))
    assert len(rows) == 6
    settings = [
        line.cells[column.task].settings
        for line in table.lines
        for column in table.columns
        if line.cells.get(column.task)
    ]
    assert "model:base_line|task:qa|version:1.0|n:20|fewshot:0|lm-eval:0.4.13" in settings
    assert [row["settings"] for row in rows] == settings
    for name in ("text", "markdown", "latex", "html"):
        assert all(html.escape(one) in shown[name] or one in shown[name] for one in settings), name
    assert {row["score"] for row in rows if row["system"] == "low"} == {
        "0.25",
        str(sum(3 + i / 100 for i in range(20)) / 20),
    }


def test_baseline_and_metric_are_checked(runs, capsys):
    assert cli.main(["leaderboard", str(runs), "--baseline", "nobody"]) == 1
    assert "no system is called 'nobody'. There are: " in capsys.readouterr().err
    assert cli.main(["leaderboard", str(runs), "--baseline", "l"]) == 1
    assert "several systems match" in capsys.readouterr().err
    assert cli.main(["leaderboard", str(runs), "--metric", "cost", "-o", str(runs / "out.txt")]) == 0
    assert "qa em" not in (runs / "out.txt").read_text()
    assert [column.title for column in leaderboard([runs], metrics=["mt:cost"]).columns] == ["qa em ↑", "mt cost ↓"]


def test_a_column_has_one_number_of_decimals_that_of_its_standard_errors(tmp_path):
    """Never 9.808 beside 32.2, in no format but CSV."""
    scores = {"one": (32.2, 5.6), "two": (9.808, 1.234), "three": (0.0, 0.0)}
    for name, (score, stderr) in scores.items():
        file = write_run(tmp_path / name, {"em": [1.0, 0.0]}, name=name, scores={"em": score})
        data = json.loads(file.read_text())
        data["results"]["t"]["em_stderr,none"] = stderr
        file.write_text(json.dumps(data))
    table = leaderboard([tmp_path])
    for name, show in FORMATS.items():
        if name != "csv":
            shown = show(table).replace(r"$\pm$", "±")
            assert sorted(re.findall(r"[\d.]+ ± [\d.]+", shown)) == ["0.0 ± 0.0", "32.2 ± 5.6", "9.8 ± 1.2"], name
    assert "9.808" in FORMATS["csv"](table)
