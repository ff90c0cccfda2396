"""The results file's entry is read back as it was written, and a damaged one is named: file, field, rule."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.find import find_runs, only_run
from lm_eval_lora_drop.record.plain import plain, rounded
from lm_eval_lora_drop.record.schema import KEY, as_json, from_config
from testing.run_files import swept, write_run

PACKAGE = Path(__file__).parents[2] / "lm_eval_lora_drop"


def test_what_was_written_comes_back() -> None:
    entry = swept()
    text = json.dumps({KEY: entry}, allow_nan=False)
    record = from_config(json.loads(text), "file")
    assert record is not None
    assert as_json(record) == entry
    assert record.tasks["t"].kept.boundary == 3


def test_a_run_of_another_model_type_has_no_entry() -> None:
    assert from_config({"model": "hf"}, "file") is None


def path_in(entry: dict[str, Any], path: str) -> tuple[Any, Any]:
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    for part in parents:
        entry = entry[part]
    return entry, last


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", 99, r"config\.lora_drop\.schema must be 1, got 99"),
        ("adapter/r", "eight", r"config\.lora_drop\.adapter\.r: Expected `int`, got `str`"),
        ("tasks/t/num_layers", 4.5, r"config\.lora_drop\.tasks\.t\.num_layers: Expected `int`, got `float`"),
        ("tasks/t/method", "guessed", r"method: Invalid enum value 'guessed'"),
        ("tasks/t/variant", "0-9", r"tasks\.t\.variant: layers must lie in 0\.\.3"),
        ("tasks/t/sweep/candidates/1/variant", "0--1", r"sweep\.candidates\[1\]\.variant: layers must be"),
        ("tasks/t/sweep/candidates/0/score", "high", r"candidates\[0\]\.score: Expected `float \| null`"),
        ("tasks/t/sweep/chosen", "1-2", r"sweep\.chosen: must be one of the candidates, got '1-2'"),
        ("tasks/t/sweep/candidates/2/items", [1.0], r"must hold equally many items each, got \[1, 40\]"),
    ],
)
def test_a_wrong_field_is_named_with_file_and_rule(path: str, value: Any, message: str) -> None:
    entry = copy.deepcopy(swept())
    parent, last = path_in(entry, path)
    parent[last] = value
    with pytest.raises(ArgumentError, match=message) as caught:
        from_config({KEY: entry}, "out/results.json")
    assert str(caught.value).startswith("out/results.json: ")


@pytest.mark.parametrize("path", ["tasks/t/sweep/chosen", "tasks/t/fingerprint", "base", "tasks/t/sweep/seed"])
def test_a_missing_field_is_named(path: str) -> None:
    entry = copy.deepcopy(swept())
    parent, last = path_in(entry, path)
    del parent[last]
    with pytest.raises(ArgumentError, match=f"missing required field `{last}`"):
        from_config({KEY: entry}, "file")


@pytest.mark.parametrize("entry", [[], "text", 7, {}, {"schema": True}])
def test_what_is_no_entry_at_all_is_refused(entry: Any) -> None:
    with pytest.raises(ArgumentError, match=r"file: config\.lora_drop\.schema must be 1"):
        from_config({KEY: entry}, "file")


def test_one_damaged_run_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    damaged = copy.deepcopy(swept())
    damaged["tasks"]["t"]["sweep"]["candidates"] = None
    write_run(tmp_path / "a", {"exact_match": [1.0]}, lora_drop=damaged)
    good = write_run(tmp_path / "b", {"exact_match": [1.0]}, lora_drop=swept())
    runs, issues = find_runs([tmp_path])
    assert [run.path for run in runs] == [good]
    (issue,) = issues
    assert "sweep.candidates: Expected `array`, got `null`" in issue.message
    with pytest.raises(ArgumentError, match="Expected `array`"):
        only_run(tmp_path / "a")


def test_plain_is_what_json_can_hold() -> None:
    value = {1: (np.float64("nan"), np.int64(3), np.array([[1.5, math.inf]])), "t": [True, None, "x"]}
    assert plain(value) == {"1": [None, 3, [[1.5, None]]], "t": [True, None, "x"]}
    assert rounded(np.array([1.23456789, math.nan])) == [1.23457, None]


def test_the_entry_is_named_in_one_file_only() -> None:
    """Everybody else goes through `record`."""
    for file in PACKAGE.rglob("*.py"):
        if file.relative_to(PACKAGE).as_posix() != "record/schema.py":
            # The group of our tasks has the same name, and our tasks begin with it.
            text = file.read_text(encoding="utf-8")
            assert not any(quoted in text for quoted in ('"lora_drop"', "'lora_drop'", "config.lora_drop.")), file
