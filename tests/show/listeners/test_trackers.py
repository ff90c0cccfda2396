"""What goes to Weights & Biases and to trackio, by the real libraries, read back from the files they keep."""

from __future__ import annotations

import importlib.util
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.show.listeners import trackers as module
from lm_eval_lora_drop.show.listeners.trackers import tracker_logs
from testing.forked import Forked
from testing.recorded_runs import curve

needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
needs_trackio = pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is not installed")

# A process each: both libraries keep a run of the whole process.
PROGRAM = """
import sys
from lm_eval_lora_drop.show.listeners import trackers
from lm_eval_lora_drop.record.events import Broadcast, Finished
from testing.events import whole_sweep
from testing.forked import Forked
from testing.recorded_runs import run_record
trackers.SECONDS_BETWEEN_LOGS = -1.0
def sweep(sweep_log="auto", task="samsum", finish=True):
    # Not through Broadcast, which would turn an error into a warning.
    found = trackers.tracker_logs(sweep_log)
    for event in [*whole_sweep(task), *([Finished(run_record({}))] if finish else [])]:
        for listener in found:
            listener.hear(event)
"""


def run(code: str, **environment: str) -> str:
    """What it wrote to standard output."""
    process = Forked(["-c", PROGRAM + code], **{"WANDB_MODE": "offline", "WANDB_SILENT": "true", **environment})
    out, said = process.communicate()
    assert process.returncode == 0, said[-3000:]
    return out


def read_wandb(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any], list[str], Path]:
    """History, summary, metrics on an axis of their own, and the files folder of the one offline run below `folder`.

    The file is a LevelDB log (github.com/google/leveldb, doc/log_format.md) of `wandb_internal.Record`s behind a header
    of seven bytes.
    """
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.rglob("run-*.wandb")
    data, block = file.read_bytes(), 32768
    at, parts, history, summary, axes = 7, b"", [], {}, []
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        if not (size or kind):
            break
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind not in (1, 4):  # a first or middle fragment
            continue
        record = wandb_internal_pb2.Record.FromString(parts)
        parts = b""
        values = lambda items: {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}  # noqa: E731
        if record.WhichOneof("record_type") == "history":
            history.append(values(record.history.item))
        elif record.WhichOneof("record_type") == "summary":
            summary |= values(record.summary.update)
        elif record.WhichOneof("record_type") == "metric" and record.metric.step_metric:
            axes.append(f"{record.metric.name} over {record.metric.step_metric}")
    return history, summary, axes, file.parent / "files"


def assert_curve(history: list[dict[str, Any]], prefix: str) -> None:
    points = [row for row in history if f"{prefix}/score" in row]
    assert [row[f"{prefix}/K"] for row in points] == list(range(11))
    assert [row[f"{prefix}/score"] for row in points] == [row.score for row in curve()][::-1]
    progress = [row[f"{prefix}/progress"] for row in history if f"{prefix}/progress" in row]
    assert progress[0] == 0
    assert progress[-1] == 1
    assert progress == sorted(progress)
    assert len(progress) >= 10
    leaders = [row[f"{prefix}/leader_K"] for row in history if f"{prefix}/leader_K" in row]
    assert set(leaders) == {7}
    decision = next(row for row in history if f"{prefix}/chosen_K" in row)
    assert decision[f"{prefix}/chosen_K"] == 7
    assert decision[f"{prefix}/kept_share"] == 0.7
    assert decision[f"{prefix}/gain_over_full"] == 0.6


@needs_wandb
def test_wandb_into_the_run_of_lm_evals_own_logger(tmp_path: Path) -> None:
    run(
        "from lm_eval.loggers import WandbLogger\n"
        "logger = WandbLogger({'project': 'mine', 'dir': " + repr(str(tmp_path)) + "})\n"
        "sweep()\n"
        "import wandb\n"
        "assert wandb.run is logger.run\n"
        "logger.run.log({'after': 1})\n"
        "logger.run.finish()\n"
    )
    history, summary, axes, files = read_wandb(tmp_path)
    assert_curve(history, "lora_drop/samsum")
    assert history[-1]["after"] == 1
    assert summary["lora_drop/samsum/variant"] == "0-6"
    assert summary["lora_drop/samsum/verdict"].startswith("Keep the bottom 7 of 10 layers")
    assert "lora_drop/samsum/score over lora_drop/samsum/K" in axes
    (table,) = (files / "media" / "table").rglob("*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"] == list(module.COLUMNS)
    assert [row[1] for row in content["data"]] == list(range(10, -1, -1))
    assert [row[0] for row in content["data"] if row[-1]] == ["0-6"]
    (picture,) = (files / "media" / "images").rglob("*.png")
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@needs_wandb
def test_wandb_in_a_run_of_its_own_which_ends_with_the_evaluation(tmp_path: Path) -> None:
    run(
        "sweep('wandb', task='a/b', finish=False)\n"
        "import wandb\n"
        "assert wandb.run is not None\n"
        "sweep('wandb', task='c')\n"
        "assert wandb.run is not None  # the second listener found a run open, so it leaves it open\n"
        "wandb.run.finish()\n",
        WANDB_DIR=str(tmp_path),
    )
    history, summary, _, _ = read_wandb(tmp_path)
    assert_curve(history, "lora_drop/a_b")
    assert_curve(history, "lora_drop/c")
    assert "lora_drop/a_b/verdict" in summary


@needs_wandb
def test_wandb_own_run_is_finished(tmp_path: Path) -> None:
    run("sweep('wandb')\nimport wandb\nassert wandb.run is None\n", WANDB_DIR=str(tmp_path))
    assert read_wandb(tmp_path)[1]["lora_drop/samsum/variant"] == "0-6"


TRACKIO_READ = """
import json
from trackio.sqlite_storage import SQLiteStorage
(project,) = SQLiteStorage.get_projects()
(name,) = SQLiteStorage.get_runs(project)
print(json.dumps([project, SQLiteStorage.get_logs(project, name)], default=str))
"""


def read_trackio(folder: Path) -> tuple[str, list[dict[str, Any]]]:
    out = run(TRACKIO_READ, TRACKIO_DIR=str(folder))
    project, history = json.loads(out.splitlines()[-1])
    return project, history


@needs_trackio
def test_trackio_into_the_run_of_lm_evals_own_logger(tmp_path: Path) -> None:
    run(
        "from lm_eval.loggers import TrackioLogger\n"
        "logger = TrackioLogger({'project': 'mine'})\n"
        "sweep()\n"
        "import trackio\n"
        "trackio.log({'after': 1})\n"
        "logger.finish()\n",
        TRACKIO_DIR=str(tmp_path),
    )
    project, history = read_trackio(tmp_path)
    assert project == "mine"
    assert_curve(history, "lora_drop/samsum")
    assert any(row.get("after") == 1 for row in history)
    (table,) = [row["lora_drop/samsum/table"] for row in history if "lora_drop/samsum/table" in row]
    assert [row["K"] for row in table["_value"]] == list(range(10, -1, -1))
    assert list(table["_value"][0]) == list(module.COLUMNS)
    (said,) = [row["lora_drop/samsum/decision"] for row in history if "lora_drop/samsum/decision" in row]
    assert "Keep the bottom 7 of 10 layers" in str(said)
    (picture,) = tmp_path.rglob("*.png")
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@needs_trackio
def test_trackio_in_a_run_of_its_own(tmp_path: Path) -> None:
    run("sweep('trackio')\n", TRACKIO_DIR=str(tmp_path))
    project, history = read_trackio(tmp_path)
    assert project == module.PROJECT
    assert_curve(history, "lora_drop/samsum")


def test_where_no_run_is_open_nothing_is_imported_or_logged(tmp_path: Path) -> None:
    out = run(
        "sweep(); sweep('none'); print([m for m in ('wandb', 'trackio') if m in sys.modules])",
        TRACKIO_DIR=str(tmp_path),
        WANDB_DIR=str(tmp_path),
    )
    assert out.split() == ["[]"]
    assert not list(tmp_path.iterdir())


def test_a_library_that_is_not_installed_is_said_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for library in ("wandb", "trackio"):
        with pytest.raises(ArgumentError, match=rf"pip install 'lm-eval-lora-drop\[{library}\]'"):
            tracker_logs(library)
    assert tracker_logs("none") == []
