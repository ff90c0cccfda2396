"""Who hears of a run while it goes on (`record.events`): progress bar, table, figure, trackers."""

from __future__ import annotations

from lm_eval_lora_drop.record.events import Listener
from lm_eval_lora_drop.show.listeners.figure import SweepFigure
from lm_eval_lora_drop.show.listeners.progress import ProgressBar
from lm_eval_lora_drop.show.listeners.table import LogTable
from lm_eval_lora_drop.show.listeners.trackers import tracker_logs


def default_listeners(rank: int, sweep_log: str = "auto") -> list[Listener]:
    """Those that every run has; only the first process shows, writes, draws and logs.

    Raises:
        ArgumentError: `sweep_log` names a library that is not installed.
    """
    return [ProgressBar(), LogTable(), SweepFigure(), *tracker_logs(sweep_log)] if rank == 0 else []
