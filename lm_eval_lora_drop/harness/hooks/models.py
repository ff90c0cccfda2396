"""Where lm-eval's registry finds our model types, by dotted target. A run of one is armed when it is looked up.

Then, and for no other model type, errors of ours and signals end `lm_eval` in one line (`endings`), and the last thing
it prints is our screen (`show.listeners.screen`).
"""

from __future__ import annotations

import atexit
import functools
import importlib
import importlib.util
import sys
from typing import Any

import lm_eval

from lm_eval_lora_drop.endings import end_lm_eval_in_one_line, on_interrupt
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.text import logger

log = logger("lm_eval.lora_drop")

_OURS = "__lora_drop__"
_LAST_TASK = "__lora_drop_last_task__"
"""The task whose samples lm-eval saves last: with them the files of a run are complete, and can be judged."""


def __getattr__(name: str) -> Any:
    """The model class `name`: `XyzLoraDropLM` of `backends.xyz`, and `LoraDropLM` of `backends.hf`.

    Raises:
        ArgumentError: this lm-eval is not supported, or vLLM is not installed.
    """
    backend = f"lm_eval_lora_drop.backends.{name.removesuffix('LoraDropLM').lower() or 'hf'}"
    if not name.endswith("LoraDropLM") or importlib.util.find_spec(backend) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    arm()
    try:
        return getattr(importlib.import_module(backend), name)
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == "lm_eval":
            raise _not_supported() from error
        if missing == "vllm":
            raise ArgumentError(
                f"--model vllm-lora-drop needs vLLM, which cannot be imported ({error}). Install it with pip install "
                "vllm, or use --model hf-lora-drop."
            ) from error
        raise


def arm() -> None:
    """From now on errors of ours end this run of `lm_eval` in one line, and our screen is the last thing it prints.

    For the module of a model type in another distribution, which lm-eval imports when the type is looked up.

    Raises:
        ArgumentError: this lm-eval is not supported.
    """
    end_lm_eval_in_one_line()
    on_interrupt("Nothing had begun.")
    if not lm_eval.__version__.startswith("0.4."):
        raise _not_supported()
    _show_screen_at_the_end()


def _not_supported() -> ArgumentError:
    return ArgumentError(
        f"lm-eval {lm_eval.__version__} is not supported yet by lm-eval-lora-drop, so its model types cannot run. "
        "Install a release that is: pip install 'lm-eval>=0.4.13,<0.5'"
    )


def _show_screen_at_the_end() -> None:
    """Have the command `lm_eval` print our screen after everything else it prints.

    The results are handed to `EvaluationTracker.save_results_aggregated` alone, with or without `--output_path`, on the
    first process only. The tables are printed after that, and nothing of lm-eval is called after them: the screen is
    made at once, while threads may still be started, and printed when the process ends. A run with a rubric is judged
    as soon as its samples are saved.
    """
    if "lm_eval._cli" not in sys.modules:  # `simple_evaluate` in Python prints nothing
        return
    from lm_eval.loggers.evaluation_tracker import EvaluationTracker

    save = EvaluationTracker.save_results_aggregated
    if hasattr(save, _OURS):
        return

    @functools.wraps(save)
    def save_and_show(self: Any, results: Any, *rest: Any, **named: Any) -> Any:
        outcome = save(self, results, *rest, **named)
        setattr(self, _LAST_TASK, next(reversed(results.get("configs") or {}), None))
        try:
            from lm_eval_lora_drop.show.listeners.screen import render_run

            atexit.register(print, render_run(results, self), end="")
        except Exception as error:  # noqa: BLE001  samples are still to be saved
            log.warning("The summary of this run cannot be shown (%r); its results are saved as usual.", error)
        return outcome

    save_samples = EvaluationTracker.save_results_samples

    @functools.wraps(save_samples)
    def save_samples_and_judge(self: Any, task_name: str, samples: Any) -> None:
        save_samples(self, task_name, samples)
        if task_name == getattr(self, _LAST_TASK, None):
            from lm_eval_lora_drop.harness.evaluation import results_file
            from lm_eval_lora_drop.judge.rescore import judge_after_run

            file = results_file(self)
            if file is not None:
                print(*judge_after_run(file), sep="\n")

    setattr(save_and_show, _OURS, True)
    EvaluationTracker.save_results_aggregated = save_and_show
    EvaluationTracker.save_results_samples = save_samples_and_judge
