"""The figure of a set: its dots are the paired differences, in the order that is promised."""

import numpy as np
import pytest

from lm_eval_lora_drop.show.figures.candidates import MOST, candidates_figure, figure_of, save_figures_of
from lm_eval_lora_drop.show.figures.style import image_element
from lm_eval_lora_drop.sweep.candidates import make_candidates
from lm_eval_lora_drop.variant import AdapterShape, Variant
from tests.candidates.records import recorded


def labels(figure):
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def dots(figure):
    """Label -> where its marker stands on the x axis, read off the drawing."""
    axes = figure.axes[0]
    found = {}
    for line in axes.lines:
        if len(line.get_xdata()) == 1:
            found[labels(figure)[round(float(line.get_ydata()[0]))]] = float(line.get_xdata()[0])
    return found


@pytest.mark.parametrize("higher", [True, False])
def test_dots_are_paired_differences_from_best_to_worst(higher):
    candidate_set = make_candidates(["window"], AdapterShape(12))
    record = recorded(candidate_set, documents=40, higher_is_better=higher)
    figure = candidates_figure("task", record)
    full = np.array(record.sweep.candidate("0-11").items)
    for row in record.sweep.candidates:
        label = Variant.parse(row.variant, 12).label
        expected = (np.array(row.items) - full).mean() * (1 if higher else -1)
        assert dots(figure)[label] == pytest.approx(expected)
    values = [dots(figure)[label] for label in labels(figure)]
    assert values == sorted(values, reverse=True)


def test_ordered_sets_keep_their_order_and_large_ones_their_marks():
    record = recorded(make_candidates(["strength"], AdapterShape(4)), documents=20)
    shown = labels(candidates_figure("task", record))
    assert shown[0] == "0-3x1.5"
    assert shown.index("K = 4") == 4
    assert shown[-1] == "K = 0"
    many = recorded(make_candidates(["window", "slope", "soft", "upper"], AdapterShape(30)), documents=20)
    shown = labels(candidates_figure("task", many))
    assert len(shown) == MOST
    assert {"K = 30", "K = 0"} <= set(shown)


def test_boundaries_stay_on_their_axis_and_a_sweep_without_full_is_drawn_otherwise(tmp_path):
    record = recorded(make_candidates(["boundary"], AdapterShape(4)), documents=20)
    assert any("boundary K" in axes.get_xlabel() for axes in figure_of("task", record).axes)
    candidate_set = make_candidates(["window"], AdapterShape(4))
    without = recorded(type(candidate_set)(candidate_set.name, candidate_set.variants[1:], False), documents=20)
    figure = figure_of("task", without)
    assert figure.axes[0].get_xlabel().endswith("validation score, higher is better")
    scores = {Variant.parse(row.variant, 4).label: row.score for row in without.sweep.candidates}
    assert dots(figure) == pytest.approx(scores)
    files = save_figures_of("a task", recorded(candidate_set, documents=20), tmp_path / "mine", ["png", "svg"])
    assert [file.name for file in files] == ["mine.png", "mine.svg"]
    assert image_element(figure_of("task", recorded(candidate_set, documents=20)), "sweep").startswith("<img")


def test_every_candidate_has_a_point_of_several_adapters_too():
    """Each adapter has a full one of its own; the legend's mark is the first's."""
    candidate_set = make_candidates(["adapters", "boundary"], AdapterShape(3, adapters=("one", "two")))
    record = recorded(candidate_set, documents=20)
    figure = candidates_figure("task", record)
    assert set(dots(figure)) == set(labels(figure)) == {one.label for one in candidate_set.variants}
