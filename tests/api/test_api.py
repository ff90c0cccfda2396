"""The Python interface, on files that were written; sweeps themselves are run in test_sweep.py."""

import base64
import copy
import re
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest

import lm_eval_lora_drop as lora_drop
from lm_eval_lora_drop import api
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.variant import Variant
from testing.recorded_runs import L, candidate, curve, results_of, run_record, sweep_record, task_record, write_results

WILD = "<script>alert(1)&\"'"


@pytest.fixture
def saved(tmp_path):
    parameters = {row.variant: 100 * k for k, row in zip(range(10, -1, -1), curve(), strict=True)}
    found = task_record(sweep_record(), warnings=(WILD,), candidate_parameters=parameters)
    record = run_record({"samsum": found, WILD: task_record(variant="0-4")})
    return write_results(tmp_path / "out" / "model", results_of(record))


def test_a_file_and_its_folder_read_alike(saved):
    for path in (saved, str(saved), saved.parent.parent):
        result = lora_drop.read(path)
        assert isinstance(result, lora_drop.Result)
        assert list(result) == ["samsum", WILD]
        assert result.path == saved
    task = result["samsum"]
    assert isinstance(task, lora_drop.TaskResult)
    assert (task.boundary, task.variant) == (7, Variant.below(7, L))
    assert (task.test.score.value, task.test.score.stderr, task.test.documents) == (33.04, 2.13, 200)
    assert task.verdict.startswith("Keep the bottom 7 of 10 layers, 30 % smaller")


def test_the_table_is_that_of_the_record(saved):
    result = lora_drop.read(saved)
    frame = result["samsum"].to_pandas()
    assert list(frame.columns) == list(api.COLUMNS)
    assert frame.boundary.tolist() == list(range(10, -1, -1))
    assert frame.score.tolist() == [row.score for row in curve()]
    assert frame[frame.chosen].variant.tolist() == ["0-6"]
    # Paired: mean difference of the items of each document to those of full; the two that were eliminated have none.
    paired = [np.mean([a - b for a, b in zip(row.items, curve()[0].items, strict=True)]) for row in curve()[:9]]
    assert frame.difference.tolist()[:9] == pytest.approx(paired)
    assert frame.difference.isna().tolist() == [False] * 9 + [True] * 2
    inside = frame.dropna(subset="difference")
    assert (inside.difference_low <= inside.difference).all()
    assert (inside.difference <= inside.difference_high).all()
    assert frame.kept_parameters.tolist() == [100 * k for k in range(10, -1, -1)]
    both = result.to_pandas()
    assert len(both) == 12
    assert both.task.unique().tolist() == ["samsum", WILD]


def test_without_pandas_the_way_out_is_said(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    task = lora_drop.read(saved)["samsum"]
    assert len(task.rows) == 11
    with pytest.raises(ArgumentError, match="pip install pandas"):
        task.to_pandas()


def test_plot_is_the_sweeps_figure(saved):
    result = lora_drop.read(saved)
    assert "32 validation documents" in result["samsum"].plot().axes[0].get_title(loc="left")
    with pytest.raises(ArgumentError, match="boundary=auto"):
        result[WILD].plot()


def test_a_plot_shows_itself_in_a_notebook_that_has_not_imported_pyplot(saved):
    """What IPython asks for (IPython.core.formatters): the bytes of a PNG."""
    shown = lora_drop.read(saved)["samsum"].plot()._repr_png_()
    width, height = struct.unpack(">II", shown[16:24])
    assert shown.startswith(b"\x89PNG\r\n")
    assert width > 600
    assert height > 400


class Page(HTMLParser):
    """The tags and texts that a browser would see."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.images = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data):
        self.text.append(data)


def test_the_display_holds_table_figure_and_verdict_and_escapes_every_name(saved):
    result = lora_drop.read(saved)
    page = Page(result._repr_html_())
    assert set(page.tags) == {"h4", "p", "strong", "em", "table", "thead", "tbody", "tr", "th", "td", "br", "img"}
    text = " ".join(page.text)
    assert WILD in text
    assert result["samsum"].verdict in text
    assert "27.0 ± 1.5" in text
    (image,) = page.images
    data = re.fullmatch(r"data:image/svg\+xml;base64,(.*)", image["src"])[1]
    assert ET.fromstring(base64.b64decode(data)).tag.endswith("svg")
    assert result["samsum"].verdict in image["alt"]


def test_of_several_tasks_one_must_be_named(saved, tmp_path):
    result = lora_drop.read(saved)
    for use in (
        lambda: result.plot(),
        lambda: result.boundary,
        lambda: result.score,
        lambda: result.export(tmp_path / "x"),
    ):
        with pytest.raises(ArgumentError, match=r"2 tasks .*result\['samsum'\]"):
            use()
    only = api.from_results(results_of(run_record({"t": task_record(sweep_record())})))
    assert (only.boundary, str(only.variant), only.verdict) == (7, "0-6", only["t"].verdict)
    assert (only.score, only.record, only.test) == (33.04, only["t"].record, only["t"].test)
    assert {"boundary", "plot", "test", "score", "keys"} <= set(dir(only))
    with pytest.raises(AttributeError, match="no attribute 'boundry'"):
        getattr(only, "boundry")  # noqa: B009
    assert copy.deepcopy(only).boundary == 7
    assert only.path is None


def test_several_runs_none_and_another_model_type_are_refused(saved, tmp_path):
    write_results(saved.parent, results_of(run_record({"t": task_record()})), date="2026-01-02T00-00-00.000000")
    with pytest.raises(ArgumentError, match=r"holds 2 runs .*Name one"):
        lora_drop.read(saved.parent)
    assert list(lora_drop.read(saved)) == ["samsum", WILD]
    with pytest.raises(ArgumentError, match="does not exist"):
        lora_drop.read(tmp_path / "nowhere")
    other = write_results(tmp_path / "other", {"results": {"t": {"acc,none": 1.0}}, "config": {"model": "hf"}})
    with pytest.raises(ArgumentError, match="no run of hf-lora-drop"):
        lora_drop.read(other)
    with pytest.raises(ArgumentError, match="another model type"):
        api.from_results({"config": {"model": "hf"}})


def test_other_candidates_than_boundaries_have_no_k():
    rows = tuple(candidate(Variant.parse(name, L), 1.0) for name in ("0-9", "0-9.mlp", "none"))
    chosen = Variant.parse("0-9.mlp", L)
    result = api.from_results(results_of(run_record({"t": task_record(sweep_record(rows, chosen=chosen))})))
    assert result.boundary is None
    assert [row["boundary"] for row in result["t"].rows] == [10, None, 0]


def test_export_refuses_an_adapter_that_is_not_the_runs_and_a_run_without_files(saved, tiny_adapter, tmp_path):
    with pytest.raises(ArgumentError, match="not the adapter of this run"):
        lora_drop.read(saved)["samsum"].export(tmp_path / "new", adapter=tiny_adapter)
    loaded = api.from_results(results_of(run_record({"t": task_record(sweep_record())}, path=None)))
    with pytest.raises(ArgumentError, match="save_pretrained"):
        loaded.export(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_function_keeps_its_name_whatever_is_imported():
    """A room of the package is called as the function is; importing it does not replace the function."""
    code = (
        "import lm_eval_lora_drop as lora_drop\n"
        "before = lora_drop.sweep\n"
        "import lm_eval_lora_drop.sweep.candidates\n"
        "from lm_eval_lora_drop.sweep import candidates\n"
        "from lm_eval_lora_drop import sweep\n"
        "assert sweep is lora_drop.sweep is before and candidates.__name__ == 'lm_eval_lora_drop.sweep.candidates'\n"
        "try: lora_drop.sweep('base', 'adapter', [])\n"
        "except lora_drop.ArgumentError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("task must name")
