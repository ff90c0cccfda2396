"""Logs a sweep into Weights & Biases or trackio: progress while it goes on, then curve, table, figure and decision.

Into the run that is open, as `lm_eval --wandb_args` or `--trackio_args` opens one (lm_eval/loggers/wandb_logger.py,
trackio_logger.py, release 0.4.13, both before the model is built); with `sweep_log=wandb` or `sweep_log=trackio` into a
run of its own where none is open. The two libraries share the calls used here (`log`, `Table`, `Image`), so one class
serves both. All keys begin with `lora_drop/<task>/`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, get_args

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.events import Answered, Decided, Event, Finished, RoundStarted, SweepEnded, SweepStarted
from lm_eval_lora_drop.record.schema import TaskRecord
from lm_eval_lora_drop.show.listeners.interim import InterimScores
from lm_eval_lora_drop.show.verdict.sweep_text import verdict
from lm_eval_lora_drop.variant import Variant

Library = Literal["wandb", "trackio"]
"""What `sweep_log` may be; auto: into whatever run is open."""
PROJECT = "lora-drop"
SECONDS_BETWEEN_LOGS = 10.0
COLUMNS = ("variant", "K", "score", "stderr", "documents", "eliminated_after", "chosen")


def tracker_logs(sweep_log: str) -> list[TrackerLog]:
    """The listeners for a value of `sweep_log`.

    Raises:
        ArgumentError: the library that was asked for by name is not installed.
    """
    if sweep_log == "none":
        return []
    if sweep_log == "auto":
        return [TrackerLog(library) for library in get_args(Library)]
    check_installed(sweep_log)
    return [TrackerLog("wandb" if sweep_log == "wandb" else "trackio", opens=True)]


def check_installed(sweep_log: str) -> None:
    """Raise ArgumentError where `sweep_log` names a library that is not installed."""
    if sweep_log in get_args(Library) and importlib.util.find_spec(sweep_log) is None:
        raise ArgumentError(
            f"sweep_log={sweep_log} needs {sweep_log}, which is not installed. "
            f"pip install 'lm-eval-lora-drop[{sweep_log}]'."
        )


class TrackerLog:
    """One library. Without `opens` it is imported by somebody else or not at all."""

    def __init__(self, library: Library, *, opens: bool = False) -> None:
        self._library = library
        self._opens = opens
        self._opened = False
        self._standing: InterimScores | None = None
        self._prefix = ""
        self._pairs = 0
        self._logged_at = 0.0

    def hear(self, event: Event) -> None:
        """Log what is of interest."""
        match event:
            case SweepStarted():
                self._start(event)
            case RoundStarted() if self._standing is not None:
                self._standing.begin_round(event.running)
            case Answered() if self._standing is not None:
                self._standing.add(event.pairs)
                if time.monotonic() - self._logged_at > SECONDS_BETWEEN_LOGS:
                    self._log_progress()
            case SweepEnded() if self._standing is not None:
                self._log_progress()
                self._standing = None
            case Decided() if (module := self._module()) is not None:
                self._decide(module, event.task, event.record)
            case Finished() if self._opened:
                module = sys.modules[self._library]
                module.finish()
                self._opened = False
            case _:
                pass

    def _module(self) -> Any:
        """The library, if a run is open in it; opens one where that was asked for."""
        module: Any = importlib.import_module(self._library) if self._opens else sys.modules.get(self._library)
        if module is None:
            return None
        if self._run(module) is None and self._opens:
            name = os.environ.get(f"{self._library.upper()}_PROJECT", PROJECT)
            module.init(project=name)
            self._opened = True
        return module if self._run(module) is not None else None

    def _run(self, module: Any) -> Any:
        return module.run if self._library == "wandb" else module.context_vars.current_run.get()

    def _start(self, event: SweepStarted) -> None:
        module = self._module()
        if module is None:
            return
        self._prefix = prefix_of(event.task)
        self._pairs = len(event.candidates) * event.documents
        self._standing = InterimScores(event)
        if self._library == "wandb":
            # So that W&B draws the curve over K by itself, not over its count of log calls.
            for name in ("score", "stderr", "documents"):
                module.run.define_metric(f"{self._prefix}/{name}", step_metric=f"{self._prefix}/K")
        self._log_progress()

    def _log_progress(self) -> None:
        assert self._standing is not None
        self._logged_at = time.monotonic()
        values: dict[str, Any] = {"pairs": self._standing.pairs, "progress": self._standing.pairs / (self._pairs or 1)}
        if (leader := self._standing.leader()) is not None:
            values |= {"leader_score": leader[1]}
            values |= {} if leader[0].boundary is None else {"leader_K": leader[0].boundary}
        self._log(values)

    def _log(self, values: dict[str, Any]) -> None:
        module = sys.modules[self._library]
        module.log({f"{self._prefix}/{name}": value for name, value in values.items()})

    def _decide(self, module: Any, task: str, record: TaskRecord) -> None:
        self._prefix = prefix_of(task)
        sentence = verdict(record)
        if record.sweep is not None:
            self._log_sweep(module, task, record, caption=sentence)
        total = record.kept_parameters + record.dropped_parameters
        gain = record.sweep.gain_over_full if record.sweep else None
        decision = {
            "kept_parameters": record.kept_parameters,
            "chosen_K": record.boundary,
            "kept_share": record.kept_parameters / total if total else None,
            "gain_over_full": gain and gain.difference,
            "gain_over_full_stderr": gain and gain.stderr,
        }
        self._log({name: value for name, value in decision.items() if value is not None})
        words = {"variant": record.variant, "method": record.method, "verdict": sentence}
        if self._library == "wandb":
            module.run.summary.update({f"{self._prefix}/{name}": text for name, text in words.items()})
        else:
            lines = [f"- {name}: {text}" for name, text in words.items()]
            self._log({"decision": module.Markdown("\n".join([f"**{task}**", "", *lines]))})

    def _log_sweep(self, module: Any, task: str, record: TaskRecord, *, caption: str) -> None:
        from lm_eval_lora_drop.show.figures.candidates import figure_of
        from lm_eval_lora_drop.show.figures.style import save_figure

        assert record.sweep is not None
        rows = []
        for one in record.sweep.candidates:
            boundary = Variant.parse(one.variant, record.num_layers).boundary
            chosen = one.variant == record.sweep.chosen
            rows.append([one.variant, boundary, one.score, one.stderr, one.documents, one.eliminated_after, chosen])
        # From K = 0 upwards, as a chart is read.
        for row in reversed(rows):
            point = {name: value for name, value in zip(COLUMNS[1:5], row[1:5], strict=True) if value is not None}
            if "score" in point:
                self._log(point)
        table = module.Table(columns=list(COLUMNS), data=rows)
        with tempfile.TemporaryDirectory() as scratch:
            (picture,) = save_figure(figure_of(task, record), Path(scratch) / "sweep", ("png",))
            self._log({"table": table, "figure": module.Image(str(picture), caption=caption)})


def prefix_of(task: str) -> str:
    """What the keys of a task begin with: a slash inside its name would open a group of its own."""
    return f"lora_drop/{task.replace('/', '_')}"
