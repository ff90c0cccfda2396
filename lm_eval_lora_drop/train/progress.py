"""A progress bar with the loss in it."""

from __future__ import annotations

import time
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback


class TrainingProgressBar(TrainerCallback):
    """One bar over all steps, on standard error. Puts the seconds spent so far into the trainer's log, so that a
    checkpoint knows what it took."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar: Any = None
        self._start = time.monotonic()
        self._before = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Begin where a checkpoint left off."""
        self._start = time.monotonic()
        self._before = next((one["seconds"] for one in reversed(state.log_history) if "seconds" in one), 0.0)
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self._title,
            unit="step",
            mininterval=2,
            dynamic_ncols=True,
        )

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:  # noqa: ARG002
        """Show the loss; note the time."""
        if self._bar is None or not logs or "loss" not in logs:
            return
        self._bar.update(state.global_step - self._bar.n)
        self._bar.set_postfix(loss=f"{float(logs['loss']):.3f}", refresh=False)
        if state.log_history:
            state.log_history[-1]["seconds"] = round(self._before + time.monotonic() - self._start, 2)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
