"""GPT-Scores side by side: the same judges on the same documents, or brackets."""

import json

import numpy as np
import pytest

from lm_eval_lora_drop.commands.main import main
from lm_eval_lora_drop.show.report.compare import compare
from lm_eval_lora_drop.show.report.leaderboard import leaderboard
from lm_eval_lora_drop.show.report.systems import open_system
from testing.run_files import write_run

JUDGES = ("easy", "fair", "harsh")


def run(folder, name, scores, *, model=None, prompt=2, served=None, samples=True):
    """A judged run: `scores[judge]` has a percentage or None for each document."""
    number = len(next(iter(scores.values())))
    columns = list(zip(*scores.values(), strict=True))
    means = [float(np.mean(there)) if (there := [v for v in row if v is not None]) else None for row in columns]
    path = write_run(
        folder / name,
        {"gpt_score": [[m] for m in means], **{f"gpt_score_{j}": [[v] for v in c] for j, c in scores.items()}},
        scores={"gpt_score": float(np.mean([m for m in means if m is not None]))}
        | {
            f"gpt_score_{j}": float(np.mean(there)) if (there := [v for v in c if v is not None]) else 0.0
            for j, c in scores.items()
        },
        higher={"gpt_score": True} | {f"gpt_score_{j}": True for j in scores},
        name=name,
        samples=samples,
    )
    data = json.loads(path.read_text())
    judges = {
        j: {
            "provider": "openai",
            "model": model or f"model-{j}",
            "verdicts": sum(v is not None for v in c),
            "served_models": {served or f"model-{j}-2026-01-01": sum(v is not None for v in c)},
        }
        for j, c in scores.items()
    }
    data["configs"]["t"]["metadata"] = {"gpt_score": {"prompt_version": prompt, "items": number, "judges": judges}}
    path.write_text(json.dumps(data))
    return path


def table(*paths, **options):
    found = leaderboard(list(paths), metrics=["gpt_score"], **options)
    return {line.system: line.cells["t"] for line in found.lines}, found


def same(number=60, seed=0):
    rng = np.random.default_rng(seed)
    quality = rng.integers(5, 11, number)
    return {
        "easy": (10.0 * quality).tolist(),
        "fair": (10.0 * quality - 20).tolist(),
        "harsh": (10.0 * quality - 40).tolist(),
    }


def test_a_vendor_that_was_down_for_one_of_two_equal_systems_ranks_nobody(tmp_path, capsys):
    scores = same()
    whole = run(tmp_path, "A", scores)
    half = run(tmp_path, "B", {**scores, "harsh": [None] * 60})
    cells, found = table(whole, half)
    assert cells["A"].comparable
    assert not cells["B"].comparable
    assert cells["B"].rank is None
    assert any("B is in brackets" in note and "no verdict of harsh" in note for note in found.notes)
    assert any("easy, fair, harsh" in note and "100 %" in note for note in found.notes)
    assert main(["compare", str(whole), str(half)]) == 0
    said = capsys.readouterr().out
    assert "no verdict of harsh" in said
    panel, fair = (
        next(line for line in said.split("\n") if line.startswith(name)) for name in ("gpt_score ", "gpt_score_fair")
    )
    assert panel.count("[") == 3
    assert "[" not in fair


def test_four_verdicts_of_180_are_no_whole_score(tmp_path):
    scores = same()
    few = {
        name: [v if i < 1 or (i == 1 and name == "easy") else None for i, v in enumerate(c)]
        for name, c in scores.items()
    }
    cells, found = table(run(tmp_path, "A", scores), run(tmp_path, "B", few))
    assert not cells["B"].comparable
    assert any("all judges scored 2 % of 60 documents" in note for note in found.notes)


@pytest.mark.parametrize(
    "other", [{"model": "another"}, {"prompt": 3}, {"served": "cheaper-mini"}, {"judges": {"x": 1}}]
)
def test_another_panel_prompt_or_served_model_is_in_brackets(tmp_path, other):
    scores = same()
    renamed = dict(zip(("easy", "fair", "third"), scores.values(), strict=True)) if "judges" in other else scores
    paths = (
        run(tmp_path, "A", scores),
        run(tmp_path, "A2", scores),
        run(tmp_path, "B", renamed, **{k: v for k, v in other.items() if k != "judges"}),
    )
    cells, _ = table(*paths)
    assert [cell.comparable for cell in cells.values()].count(False) == 1
    assert not cells["B"].comparable
    found = compare([open_system(str(path))[0] for path in (paths[0], paths[2])])
    row = next(row for row in found.tasks[0].metrics if row.metric == "gpt_score")
    assert row.bracket.startswith("other")
    assert row.p_value is None


def test_without_samples_the_record_decides(tmp_path):
    scores = same()
    cells, _ = table(run(tmp_path, "A", scores), run(tmp_path, "B", {**scores, "harsh": [None] * 60}, samples=False))
    assert cells["A"].comparable
    assert not cells["B"].comparable


def test_means_are_over_the_documents_that_all_judges_scored_for_all(tmp_path):
    scores = same()
    holes = {**scores, "harsh": [None if i % 10 == 0 else v for i, v in enumerate(scores["harsh"])]}
    cells, found = table(run(tmp_path, "A", scores), run(tmp_path, "B", holes))
    kept = [i for i in range(60) if i % 10]
    assert (
        cells["A"].score == cells["B"].score == pytest.approx(np.mean([[c[i] for i in kept] for c in scores.values()]))
    )
    assert cells["A"].documents == cells["B"].documents == 54
    assert cells["A"].rank == cells["B"].rank
    assert any("54 documents" in note for note in found.notes)


def test_a_real_difference_is_found_per_judge_and_for_the_panel(tmp_path, capsys):
    rng = np.random.default_rng(2)
    one = {name: (10.0 * rng.integers(3, 9, 100)).tolist() for name in JUDGES}
    two = {name: [min(100.0, v + 10.0 * int(rng.integers(0, 3))) for v in column] for name, column in one.items()}
    paths = run(tmp_path, "A", one), run(tmp_path, "B", two)
    rows = {r.metric: r for r in compare([open_system(str(p))[0] for p in paths]).tasks[0].metrics}
    assert set(rows) == {"gpt_score", *(f"gpt_score_{name}" for name in JUDGES)}
    for name, row in rows.items():
        assert row.p_value < 0.05, name
        assert row.interval[0] <= row.difference <= row.interval[1]
        assert row.gained > 0
    # Few judges: the panel's interval allows for other ones, so it is wider than over documents alone.
    width = np.diff(rows["gpt_score"].interval)[0]
    assert width > np.diff(rows["gpt_score_fair"].interval)[0]


def test_the_report_names_judges_and_coverage_and_leaves_no_run_out(tmp_path):
    scores = same()
    run(tmp_path, "A", scores)
    run(tmp_path, "B", {**scores, "harsh": [None] * 60})
    out = tmp_path / "report.html"
    assert main(["report", str(tmp_path), "-o", str(out)]) == 0
    page = out.read_text()
    assert "cannot be used" not in page
    assert "no verdict of harsh" in page
    assert "easy, fair, harsh; 100 % of 60 documents" in page
