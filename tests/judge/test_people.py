"""Few human scores and many of a panel: the interval, by another way of computing it, and the command."""

import json

import numpy as np
import pytest

from lm_eval_lora_drop.commands.main import main
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.judge.people import filled, powered_mean, powered_share, read_people
from lm_eval_lora_drop.show.figures.people import people_figure
from tests.show.report.test_judged import run


def test_the_value_is_that_of_the_published_estimator():
    """By least squares: of all t the interval's is the one with the smallest variance (arXiv 2311.01453, section 6)."""
    rng = np.random.default_rng(0)
    quality = rng.normal(60, 15, 330)
    human, judged = quality[:30] + rng.normal(0, 5, 30), quality + rng.normal(-20, 5, 330)
    found = powered_mean(human, judged[:30], judged[30:])
    grid = np.linspace(0, 1, 1001)
    # The panel's variance is known from all 330, its covariance with people from the 30.
    covariance = np.cov(human, judged[:30])[0, 1]
    spread = judged.var(ddof=1)
    variance = (human.var(ddof=1) - 2 * grid * covariance + grid**2 * spread) / 30 + grid**2 * spread / 300
    assert found.tuning == pytest.approx(grid[variance.argmin()], abs=1e-3)
    t = found.tuning
    assert found.value == pytest.approx((human - t * judged[:30]).mean() + t * judged[30:].mean())
    assert np.diff(found.interval)[0] < 0.75 * np.diff(found.people_alone)[0]


def test_a_panel_that_knows_nothing_changes_nothing():
    rng = np.random.default_rng(1)
    human = rng.normal(60, 15, 30)
    found = powered_mean(human, np.full(30, 50.0), np.full(300, 50.0))
    assert found.tuning == 0
    assert found.value == pytest.approx(human.mean())
    opposite = powered_mean(human, -human, -rng.normal(60, 15, 300))
    assert opposite.tuning == 0


@pytest.fixture
def judged(tmp_path):
    rng = np.random.default_rng(3)
    quality = rng.normal(60, 15, 120)
    paths = []
    for name, gain in (("A", 0.0), ("B", 8.0)):
        columns = {
            j: (quality + gain + rng.normal(b, 3, 120)).tolist() for j, b in (("easy", 10), ("fair", 0), ("harsh", -20))
        }
        paths.append(run(tmp_path, name, columns))
        people = [f"{i},{min(100.0, quality[i] + gain + rng.normal(0, 3))}" for i in range(25)]
        (tmp_path / f"{name}.csv").write_text("doc_id,score\n" + "\n".join(people) + "\n")
    return tmp_path, paths


def test_the_command_gives_a_mean_and_a_difference(judged, capsys):
    folder, (one, two) = judged
    out = folder / "people.json"
    assert main(["judge", "people", str(one), "--humans", str(folder / "A.csv"), "--json", str(out)]) == 0
    score = json.loads(out.read_text())["criteria"]["score"]
    assert score["interval"][0] < 60 + 4
    assert score["interval"][1] > 60 - 4
    assert score["judges"]["harsh"]["bias"] == pytest.approx(-20, abs=3)
    assert score["judges"]["fair"]["rank_correlation"] > 0.9
    files = ["--humans", str(folder / "A.csv"), str(folder / "B.csv")]
    assert main(["judge", "people", str(one), str(two), *files, "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["criteria"]["score"]["interval"][0] > 4
    assert len(found["next"]) == 10
    assert not set(found["next"]) & set(range(25))
    assert "people alone" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    [
        "",
        "doc_id\n1\n",
        "id,score\n1,2\n",
        "doc_id,score\n1,good\n",
        "doc_id,score\nx,2\n",
        "doc_id,score\n1,nan\n",
        "doc_id,score\n1,50\n2,101\n",
        "doc_id,score\n1,50\n2,-1\n",
    ],
)
def test_a_file_of_something_else_is_refused(text, tmp_path):
    path = tmp_path / "people.csv"
    path.write_text(text)
    with pytest.raises(ArgumentError, match=r"people\.csv"):
        read_people(path)


@pytest.mark.parametrize(
    ("scores", "scale", "percent"),
    [
        ("7 8 3 5 10", (0, 10), [70, 80, 30, 50, 100]),
        ("7 8 3 5 10", (0, 100), [7, 8, 3, 5, 10]),
        ("1 5 3 2 4", (1, 5), [0, 100, 50, 25, 75]),
        ("-1 1 0 1 0", (-1, 1), [0, 100, 50, 100, 50]),
        ("7 8 3 5 10.5", None, [7, 8, 3, 5, 10.5]),
        ("7 8 3 5 10", None, "--scale 0 10"),  # percent, or the judges' scale?
        ("1 0 0 1 1", None, "--scale 0 10"),
        ("7 8 3 5 11", (0, 10), "from 0 to 10"),
        ("0 8 3 5 1", (1, 5), "from 1 to 5"),
        ("7 8 3 5 60", (10, 0), "--scale must be"),
    ],
)
def test_the_scale_of_human_scores_is_named_or_clear(scores, scale, percent, tmp_path):
    path = tmp_path / "people.csv"
    path.write_text("doc_id,score\n" + "".join(f"{i},{text}\n" for i, text in enumerate(scores.split())))
    if isinstance(percent, str):
        with pytest.raises(ArgumentError, match=percent):
            read_people(path, scale)
    else:
        assert list(read_people(path, scale)["score"].values()) == pytest.approx(percent)


def test_one_criterion_on_another_scale_is_not_lost_among_the_others(tmp_path):
    path = tmp_path / "people.csv"
    path.write_text("doc_id,fluency,accuracy\n1,80,4\n2,70,5\n")
    with pytest.raises(ArgumentError, match="no score of accuracy is above 10"):
        read_people(path)


def test_scores_of_0_to_10_give_the_interval_of_their_percentages(judged, capsys):
    folder, (one, _) = judged
    rows = (folder / "A.csv").read_text().split()[1:]
    tenths = [f"{d},{float(v) / 10}" for d, v in (row.split(",") for row in rows)]
    (folder / "tenths.csv").write_text("doc_id,score\n" + "\n".join(tenths) + "\n")
    assert main(["judge", "people", str(one), "--humans", str(folder / "tenths.csv")]) == 1
    assert "--scale 0 10" in capsys.readouterr().err
    found = []
    for name, scale in (("A", []), ("tenths", ["--scale", "0", "10"])):
        arguments = ["--humans", str(folder / f"{name}.csv"), *scale, "--json", str(folder / f"{name}.json")]
        assert main(["judge", "people", str(one), *arguments]) == 0
        found.append(json.loads((folder / f"{name}.json").read_text())["criteria"]["score"])
    assert found[0]["interval"] == pytest.approx(found[1]["interval"])


def test_too_few_people_have_no_interval(judged, capsys):
    folder, (one, _) = judged
    (folder / "few.csv").write_text("doc_id,score\n1,50\n2,60\n")
    assert main(["judge", "people", str(one), "--humans", str(folder / "few.csv")]) == 1
    assert "at least 5" in capsys.readouterr().err


def coverage(draw, truth, samples=300):
    """In how many of the samples the interval of the command's own functions contains the truth."""
    hits = 0
    for seed in range(samples):
        low, high = draw(np.random.default_rng(seed)).interval
        hits += low <= truth <= high
    return hits / samples


def test_a_judge_that_fails_on_bad_texts_does_not_take_them_out_of_the_mean():
    """A panel silent on the worst 30 %: the interval is to hold for all documents, of mean 60."""

    def draw(rng):
        quality = rng.normal(60, 15, 330)
        scores = np.array([quality + rng.normal(b, 5, 330) for b in (0, -20)])
        scores[1, quality < np.quantile(quality, 0.3)] = np.nan
        panel = filled(scores)
        return powered_mean(quality[:40] + rng.normal(0, 5, 40), panel[:40], panel[40:])

    assert 0.92 <= coverage(draw, 60) <= 0.98


def test_few_preferences_of_one_opinion_still_leave_doubt():
    """Of nineteen in twenty people prefer the first; ten votes often agree, which is no certainty."""

    def draw(rng, share=powered_share):
        people = np.where(rng.random(310) < 0.95, 100.0, 0.0)
        judged = np.where(rng.random(310) < 0.9, people, 50.0)
        return share(people[:10], judged[:10], judged[10:])

    assert coverage(lambda rng: draw(rng, powered_mean), 95) < 0.6
    assert coverage(draw, 95) > 0.93
    ten = powered_share(np.full(10, 100.0), np.full(10, 100.0), np.full(300, 100.0))
    assert ten.people_alone[0] < 90
    assert ten.people_alone[1] == 100
    assert ten.by_people == 10


def test_people_who_agree_on_one_score_have_no_interval_of_width_zero(judged, capsys):
    folder, (one, _) = judged
    (folder / "same.csv").write_text("doc_id,score\n" + "".join(f"{i},80\n" for i in range(8)))
    assert main(["judge", "people", str(one), "--humans", str(folder / "same.csv")]) == 0
    assert "80.0 %, no interval: people gave every document the same score" in capsys.readouterr().out


def test_scores_of_documents_that_the_run_does_not_have_are_refused(judged, capsys):
    folder, (one, _) = judged
    (folder / "other.csv").write_text("doc_id,score\n" + "".join(f"{i},{i / 2}\n" for i in range(100, 130)))
    assert main(["judge", "people", str(one), "--humans", str(folder / "other.csv")]) == 1
    assert "has no document 120, 121" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_plot_has_a_panel_for_each_criterion_and_judge(judged, suffix, capsys):
    folder, (one, _) = judged
    rows = (folder / "A.csv").read_text().replace("score", "fluency,accuracy").split("\n")
    text = "\n".join([rows[0], *(f"{row},{row.split(',')[1]}" for row in rows[1:] if row)])
    (folder / "both.csv").write_text(text)
    plot = folder / f"agreement.{suffix}"
    command = ["judge", "people", str(one), "--humans", str(folder / "both.csv"), "--plot", str(plot)]
    assert main(command) == 0
    assert str(plot) in capsys.readouterr().out
    assert plot.stat().st_size > 1000
    assert main([*command[:-1], str(folder / "agreement.jpg")]) == 1
    assert "png, svg, pdf" in capsys.readouterr().err
    rng = np.random.default_rng(0)
    points = {(c, j): (rng.uniform(0, 100, 9), rng.uniform(0, 100, 9)) for c in ("a", "b") for j in "xyz"}
    figure = people_figure(points)
    assert [axes.get_title(loc="left") for axes in figure.axes] == list("xyz") * 2
    drawn = figure.axes[4].lines[1].get_xydata()
    assert np.abs(drawn - np.array(points["b", "y"]).T).max() < 4
