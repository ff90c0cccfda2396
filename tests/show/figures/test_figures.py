"""Figures: they hold what they should, take any name, and come out the same twice."""

import itertools
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest

from lm_eval_lora_drop.commands.main import main
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.metric import MetricSpec
from lm_eval_lora_drop.show.figures.axes import ticks_with_ends
from lm_eval_lora_drop.show.figures.candidates import candidates_figure, figure_of, save_figures_of
from lm_eval_lora_drop.show.figures.probe import (
    difference_figure,
    maximum_figure,
    rise_figure,
    save_probe_figures,
    tokens_figure,
)
from lm_eval_lora_drop.show.figures.seeds import SeedCurves, seeds_figure
from lm_eval_lora_drop.show.figures.style import file_name, save_figure
from lm_eval_lora_drop.show.figures.sweep import sweep_figure
from lm_eval_lora_drop.sweep.recorded import RecordedSweep
from lm_eval_lora_drop.sweep.trust import gains_over_full
from lm_eval_lora_drop.variant import Variant
from testing.recorded_runs import (
    boundaries,
    candidate,
    curve,
    results_of,
    run_record,
    sweep_record,
    task_record,
    write_results,
)

NAMES = [
    "lora_drop_samsum",
    r"a $\frac{1}{0}$ task_with^all {kinds} % & # ~ \x",
    "x" * 300,
    "<b>&amp;\x00\x1b\ud800",
    "$",
]


def probed(*, layer=6, sets=("full", "K = 7", "base")):
    """The probe object of a results file with random curves."""
    rng = np.random.default_rng(0)

    def series(*shape):
        return {"mean": rng.random(shape).tolist(), "stderr": (rng.random(shape) / 20).tolist()}

    measures = ("probability", "max_probability", "rank", "entropy")
    curves = [
        {
            "name": name,
            "boundary": {"full": 10, "base": 0}.get(name, 7),
            "by_token": {measure: series(4, 10) for measure in measures},
            "over_tokens": {measure: series(10) for measure in measures},
            "probability_less_full": {"by_token": series(4, 10), "over_tokens": series(10)},
        }
        for name in sets
    ]
    rise = {"layer": layer, "interval": None if layer is None else [5, 8]}
    return {"num_layers": 10, "tokens": 4, "documents": 50, "boundary": 7, "rise": rise, "curves": curves}


def legend(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def entry(**changes):
    """A task with 11 boundaries; the two lowest were eliminated."""
    return task_record(sweep_record(**changes))


def test_the_sweeps_figure_shows_every_score_its_band_and_the_three_marks():
    figure = sweep_figure("task", entry())
    axes = figure.axes[0]
    rows = [[10 - place, row.score] for place, row in enumerate(curve())][::-1]
    lines = [line.get_xydata().tolist() for line in axes.lines]
    assert rows in lines
    assert rows[:2] in lines
    band = axes.collections[0].get_paths()[0].vertices
    assert [3.0, 23.0 - 1.5] in band.tolist()
    assert [3.0, 23.0 + 1.5] in band.tolist()
    assert legend(figure) == [
        "± 1 standard error",
        "eliminated early (fewer documents)",
        "chosen, K = 7: 27.0 ± 1.5",
        "full, K = 10: 28.2 ± 1.5",
        "base, K = 0: 20.0 ± 1.5",
    ]
    assert "rouge_l" in axes.get_ylabel()
    assert "higher is better" in axes.get_ylabel()
    assert "boundary K" in figure.axes[-1].get_xlabel()
    assert "32 validation documents" in axes.get_title(loc="left")


def test_the_lower_panel_shows_every_paired_difference_with_the_band_that_the_verdict_uses():
    record = entry()
    _, below = sweep_figure("task", record).axes
    gains = gains_over_full(RecordedSweep.from_record(record))
    drawn = {tuple(point) for line in below.lines for point in line.get_xydata().tolist()}
    edges = below.collections[0].get_paths()[0].vertices.tolist()
    for kept, gain in gains.items():
        assert (kept.boundary, gain.value) in drawn
        # Full does not differ from itself.
        for edge in (0.0, 0.0) if kept.is_full else (gain.low, gain.high):
            assert [kept.boundary, edge] in edges
    # The two that were eliminated met other documents.
    assert sorted(kept.boundary for kept in gains) == list(range(2, 11))


def test_there_is_no_lower_panel_without_the_whole_adapter_or_with_a_tasks_own_aggregation():
    without = tuple(row for row in curve() if not Variant.parse(row.variant, 10).is_full)
    assert len(sweep_figure("task", entry(candidates=without)).axes) == 1
    assert len(sweep_figure("task", entry(aggregation="tasks.mine:own")).axes) == 1


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 7, 12, 13, 16, 22, 24, 26, 28, 30, 32, 36, 40, 48, 61, 80, 126])
def test_the_ticks_name_base_and_full_and_do_not_touch(layers):
    ticks = ticks_with_ends(0, layers)
    assert ticks[0] == 0
    assert ticks[-1] == layers
    assert len(ticks) <= 13
    # A label is about a fortieth of the axis wide.
    assert min(b - a for a, b in itertools.pairwise(ticks)) >= layers / 32
    figure = sweep_figure(
        "task",
        task_record(sweep_record(boundaries({0: 1.0, layers: 2.0}, layers), chosen=0, layers=layers), layers=layers),
    )
    assert figure.axes[0].get_xticks().tolist() == ticks


@pytest.mark.parametrize("chosen", [0, 7, 17, 23, 29, 30])
def test_the_chosen_boundary_has_a_tick_that_touches_no_other(chosen):
    rows = boundaries({0: 1.0, 30: 1.5, chosen: 2.0}, 30)
    record = task_record(sweep_record(rows, chosen=chosen, layers=30), layers=30)
    found = sweep_figure("task", record).axes[0].get_xticks().tolist()
    assert {0, chosen, 30} <= set(found)
    assert min(b - a for a, b in itertools.pairwise(found)) >= 30 / 32


def test_full_and_base_are_marked_only_where_they_were_scored():
    some = tuple(row for row in curve() if Variant.parse(row.variant, 10).boundary in range(2, 9))
    assert legend(sweep_figure("task", entry(candidates=some))) == ["± 1 standard error", "chosen, K = 7: 27.0 ± 1.5"]


def test_a_score_without_standard_error_or_without_a_value_is_drawn_as_far_as_it_goes():
    figure = sweep_figure("task", entry(candidates=boundaries({1: 0.5, 0: None}, stderr=None, documents=1), chosen=1))
    assert "chosen, K = 1: 0.500" in legend(figure)


def test_the_rule_is_named_where_it_need_not_choose_the_best():
    assert "chosen (one_se), K = 6: 26.0 ± 1.5" in legend(sweep_figure("task", entry(chosen=6, select="one_se")))


def test_the_curve_that_decides_is_drawn_and_adapter_model_and_filter_are_named():
    """Lines fitted by numpy, weighted by hand, one for each K; the same names on the figure of other candidates."""
    record = replace(entry(select="smooth"), metric=MetricSpec("rouge_l", "strict", True))
    figure = sweep_figure("task", record, run_record({"task": record}))
    (curve_of_rule,) = (line for line in figure.axes[0].lines if line.get_label() == "smoothed (decides)")
    at, shown = curve_of_rule.get_xydata().T
    scores = [row.score for row in curve()][::-1]
    for k, value in zip(at, shown, strict=True):
        weights = np.exp(-((at - k) ** 2) / 4)  # polyfit squares them
        assert value == pytest.approx(np.polyval(np.polyfit(at - k, scores, 1, w=weights), 0))
    assert "rouge_l,strict" in figure.axes[0].get_ylabel()
    title = figure.axes[0].get_title(loc="left")
    assert title.splitlines()[1] == "mine on base"
    assert candidates_figure("task", record, run_record({"task": record})).axes[0].get_title(loc="left") == title
    assert "smoothed (decides)" not in legend(sweep_figure("task", entry(select="best")))


@pytest.mark.parametrize("higher", [True, False])
def test_candidates_that_are_no_boundaries_stand_from_best_to_worst_under_their_names(higher):
    """Without items to pair, their scores are drawn, with a standard error of 1.5."""
    names = ["0-9", "0-9x0.5", "0-9.attention", "5-9", "none"]
    scores = dict(zip(names, [3.0, 5.0, 2.0, 4.0, 1.0], strict=True))
    rows = tuple(candidate(Variant.parse(name, 10), score) for name, score in scores.items())
    chosen = Variant.parse("0-9x0.5", 10)
    record = entry(candidates=rows, chosen=chosen, candidate_set="mixed", ordered=False)
    figure = figure_of("task", replace(record, metric=MetricSpec("m", "none", higher)))
    axes = figure.axes[0]
    order = sorted(names, key=lambda name: scores[name], reverse=higher)
    assert [text.get_text() for text in axes.get_yticklabels()] == [Variant.parse(name, 10).label for name in order]
    drawn = {tuple(point) for line in axes.lines for point in line.get_xydata().tolist()}
    assert drawn == {(scores[name], float(place)) for place, name in enumerate(order)}
    segments = [line.tolist() for line in axes.collections[0].get_segments()]
    assert segments == [[[scores[n] - 1.5, y], [scores[n] + 1.5, y]] for y, n in enumerate(order)]


def test_a_record_without_a_sweep_is_refused():
    with pytest.raises(ArgumentError, match="boundary=auto"):
        sweep_figure("task", task_record())


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_drawn_as_text_and_gives_a_file(name, tmp_path):
    paths = save_figures_of(name, replace(entry(), metric=MetricSpec(name, "none", True)), tmp_path / file_name(name))
    paths += save_probe_figures(name, probed(), tmp_path, ["svg"])
    assert all(path.parent == tmp_path and path.stat().st_size > 5000 for path in paths)
    assert {path.suffix for path in paths} == {".png", ".svg", ".pdf"}
    for path in paths:
        if path.suffix == ".svg":
            ET.parse(path)


def test_a_long_or_wild_name_still_makes_a_file_name():
    assert file_name("../../etc/passwd") == "etc_passwd"
    assert file_name("...") == "task"
    assert len(file_name("x" * 300)) <= 100


def test_drawing_again_gives_the_same_files(tmp_path):
    for folder in ("one", "two"):
        save_figures_of("task", entry(), tmp_path / folder / "sweep")
        save_probe_figures("task", probed(), tmp_path / folder, ["svg"])
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == 7
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_an_unknown_format_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ArgumentError, match="png, svg, pdf, got gif"):
        save_figure(sweep_figure("task", entry()), tmp_path / "figure", ["png", "gif"])
    assert not list(tmp_path.iterdir())


def test_the_probes_figures_show_their_series():
    probe = probed()
    rise = rise_figure("task", probe)
    assert legend(rise) == [
        "full",
        "K = 7",
        "base",
        "95 % interval of the rise point",
        "rise point, layer 6 (boundary K = 7)",
    ]
    for drawn, line in zip(probe["curves"], rise.axes[0].lines, strict=False):
        np.testing.assert_allclose(line.get_ydata(), drawn["over_tokens"]["probability"]["mean"])
    tokens = tokens_figure("task", probe)
    assert [axes.get_title(loc="left") for axes in tokens.axes] == ["full", "K = 7", "base"]
    for drawn, axes in zip(probe["curves"], tokens.axes, strict=True):
        for mean, line in zip(drawn["by_token"]["probability"]["mean"], axes.lines, strict=True):
            np.testing.assert_allclose(line.get_ydata(), mean)
    assert legend(maximum_figure("task", probe)) == ["full", "K = 7", "base"]
    difference = difference_figure("task", probe)
    assert legend(difference) == ["K = 7 minus full"]
    np.testing.assert_allclose(
        difference.axes[0].lines[1].get_ydata(),
        probe["curves"][1]["probability_less_full"]["over_tokens"]["mean"],
    )


@pytest.mark.parametrize(("seeds", "panels"), [(1, 1), (2, 3), (8, 2)])
def test_a_legend_of_seeds_covers_no_curve_and_is_not_cut_off(seeds, panels):
    """Curves that fill every corner of the panel: from the upper left to the lower right, and back."""
    corners = {0: (1.0, -1.0, 1.0), 5: (0.0, -1.0, 1.0), 10: (-1.0, -1.0, 1.0)}
    values = {f"seed {n}": {0: (-1.0) ** n, 10: -((-1.0) ** n)} for n in range(seeds)}
    figure = seeds_figure([SeedCurves("task, full", "rouge_l", 10, values, corners, {5: (0.0, -1.0, 1.0)})] * panels)
    figure.draw_without_rendering()
    for axes in figure.axes:
        around = axes.get_legend().get_window_extent()
        assert len(axes.get_legend().get_texts()) == seeds + 2
        assert not any(around.overlaps(other.get_window_extent()) for other in figure.axes)
        assert not around.overlaps(axes.xaxis.label.get_window_extent())
        assert figure.bbox.x0 <= around.x0 <= around.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= around.y0


def test_without_a_rise_point_none_is_drawn():
    assert legend(rise_figure("task", probed(layer=None))) == ["full", "K = 7", "base"]


def test_the_full_adapter_alone_has_no_difference(tmp_path):
    paths = save_probe_figures("task", probed(sets=("full",)), tmp_path, ["png"])
    assert sorted(path.name for path in paths) == [
        "probe-maximum-task.png",
        "probe-rise-task.png",
        "probe-tokens-task.png",
    ]


def test_the_command_draws_a_results_file(tmp_path, capsys):
    tasks = {
        "one": entry(),
        "two": task_record(method="probe", probe=probed()),
        "three": task_record(),
    }
    results = write_results(tmp_path, results_of(run_record(tasks)))
    assert main(["figures", str(results), "--formats", "svg"]) == 0
    printed = capsys.readouterr().out.split()
    assert [path.rsplit("/", 1)[1] for path in printed] == [
        "sweep-one.svg",
        "probe-rise-two.svg",
        "probe-tokens-two.svg",
        "probe-maximum-two.svg",
        "probe-difference-two.svg",
    ]
    out = str(tmp_path / "out")
    assert main(["figures", str(results), "-o", out, "--formats", "png,pdf", "--task", "two"]) == 0
    assert len(list((tmp_path / "out").iterdir())) == 8


def test_what_cannot_be_drawn_is_named_with_the_way_out(tmp_path, capsys):
    results = write_results(tmp_path, results_of(run_record({"a": task_record()})))
    for arguments, message in (
        ([str(results)], "no sweep and no probe"),
        ([str(results), "--task", "b"], "got b. There are: a"),
        ([str(tmp_path / "none.json")], "does not exist"),
    ):
        assert main(["figures", *arguments]) == 1
        assert message in capsys.readouterr().err
