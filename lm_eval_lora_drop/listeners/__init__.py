"""Who hears of a run while it goes on (`record.events`): the progress bar, the log's table, the figure."""

from __future__ import annotations

from lm_eval_lora_drop.listeners.figure import SweepFigure
from lm_eval_lora_drop.listeners.progress import ProgressBar
from lm_eval_lora_drop.listeners.table import LogTable
from lm_eval_lora_drop.record.events import Listener


def default_listeners(rank: int) -> list[Listener]:
    """Those that every run has; only the first process shows, writes and draws."""
    return [ProgressBar(), LogTable(), SweepFigure()] if rank == 0 else []
