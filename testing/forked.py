"""Processes of their own that need not import Transformers, PEFT and lm-eval again, which takes ten seconds of a core.

One process per session imports them (Python's own fork server) and every program is forked from it: a real process with
its own exit status, standard output and signals. Only programs whose imports are themselves what is tested need a
fresh interpreter.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils import collect_env

from lm_eval_lora_drop.show.listeners.figure import SweepFigure
from testing import task_files

ROOT = Path(__file__).parents[1]
_context: Any = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        *("lm_eval._cli", "lm_eval.evaluator", "pytablewriter", "matplotlib.backends.backend_agg"),
        *("lm_eval_lora_drop.backends.hf", "lm_eval_lora_drop.show.figures.candidates"),
    ]
)


class Forked:
    """What of `subprocess.Popen` the tests use, for `python -c CODE`, `python -m MODULE ...` given as `words`."""

    task_index: Path | None = None
    """Where lm-eval's own tasks have been read to (`task_files`), None to have each process read them."""

    def __init__(self, words: Sequence[str], *, cwd: Path = ROOT, said: Path | None = None, **environment: str) -> None:
        """`said` is a file for both streams; without it `communicate` has them."""
        self._said = [said or Path(tempfile.mkstemp(prefix="forked-")[1]) for _ in range(2)]
        machine = collect_env.get_pretty_env_info()
        given = ([str(word) for word in words], str(cwd), {**os.environ, **environment}, *map(str, self._said))
        self._process = _context.Process(target=_run, args=(*given, machine, self.task_index), daemon=True)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Negative where a signal ended it, None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """As `returncode`."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """To the process, if it still runs."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """By SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int | None:
        """Its exit status."""
        self._process.join(timeout)
        return self.returncode

    def communicate(self) -> tuple[str, str]:
        """Wait; what it wrote to standard output and standard error."""
        self.wait()
        out, err = (path.read_text(errors="replace") for path in self._said)
        for path in self._said:
            path.unlink()
        return out, err


def _run(
    words: list[str], cwd: str, environment: Mapping[str, str], out: str, err: str, machine: str, index: Path | None
) -> None:
    """Become that program, as an interpreter that has just started would run it."""
    for number, path in enumerate((out, err), 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(
            encoding=environment.get("PYTHONIOENCODING"), write_through="PYTHONUNBUFFERED" in environment
        )
    os.chdir(cwd)
    multiprocessing.current_process()._config["daemon"] = False  # it may have children, as any program
    signal.signal(signal.SIGINT, signal.default_int_handler)
    kind, program, *arguments = words
    sys.argv = [kind if kind == "-c" else program, *arguments]
    collect_env.get_pretty_env_info = lambda: machine
    SweepFigure.hear = lambda self, event: None
    gc.freeze()  # what was imported is no garbage, and looking at it would copy every page
    if index is not None:
        task_files.read_once(index)
    import datasets.config

    # Read from the environment at import.
    if "HF_DATASETS_CACHE" in environment:
        datasets.config.HF_DATASETS_CACHE = Path(environment["HF_DATASETS_CACHE"])
    status: Any = 0
    try:
        if kind == "-c":
            exec(compile(program, "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:  # noqa: BLE001  as the interpreter does it
        sys.excepthook(*sys.exc_info())
        status = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(int(status or 0))
