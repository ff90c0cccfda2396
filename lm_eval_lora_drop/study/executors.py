"""Where the units of a study run: one after another in this process, or many at a time on a Ray cluster.

An executor only maps. The work is the same function in the same folders (`study.run.UnitRunner`), so that a study begun
by one executor is gone on with by another.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Protocol

from lm_eval_lora_drop import __version__
from lm_eval_lora_drop.errors import ArgumentError, LoraDropError
from lm_eval_lora_drop.study.plan import Unit
from lm_eval_lora_drop.text import logger

log = logger(__name__)
UnitFunction = Callable[[Unit], list[str]]
"""Does a unit's missing work; a sentence for each part that could not be done."""


class Executor(Protocol):
    """Maps `UnitFunction` over the units of a study. `at_once` is how many it runs at a time."""

    @property
    def at_once(self) -> int:
        """How many units run at a time."""

    def map(self, work: UnitFunction, units: Sequence[Unit]) -> Iterable[list[str]]:
        """What `work` returns for each unit, in their order."""


class SequentialExecutor:
    """In this process; a model that is loaded serves the next unit as well."""

    at_once = 1

    def map(self, work: UnitFunction, units: Sequence[Unit]) -> Iterable[list[str]]:
        """What `work` returns for each unit, in their order."""
        return map(work, units)


class RayExecutor:
    """On the Ray cluster that the environment names (RAY_ADDRESS), on one that runs on this machine, or on a local one
    that is started for it: whatever `ray.init()` finds. To be used as a context.

    A unit gets `threads` CPUs, and one GPU where `gpu` is wanted and the cluster has any. All nodes need this package
    and see the folder of the study, and the current one, under the same path. A unit whose worker is killed runs
    again, on Ray's count of retries (RAY_TASK_MAX_RETRIES, three); what it had finished it passes over.

    Raises:
        ArgumentError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, *, threads: int = 1, gpu: bool = True) -> None:
        try:
            import ray
        except ImportError as error:
            raise ArgumentError(f"--executor ray needs Ray ({error}): pip install 'lm-eval-lora-drop[ray]'.") from error
        self._ray: Any = ray
        self._cpus = threads
        self._gpu = gpu
        self._gpus = 0

    def __enter__(self) -> RayExecutor:
        ray = self._ray
        address = os.environ.get("RAY_ADDRESS")
        try:
            ray.init(log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise ArgumentError(
                f"RAY_ADDRESS must be the address of a Ray cluster that runs, or be unset to start one here; got "
                f"{address} ({_first_line(error)})."
            ) from error
        self._gpus = int(self._gpu and ray.cluster_resources().get("GPU", 0) >= 1)
        places = self._places()
        log.info(
            "on Ray at %s: %d at a time, each with %d CPU and %d GPU",
            address or "this machine", places, self._cpus, self._gpus,
        )  # fmt: skip
        if not places:
            log.warning("no node of the cluster has %d CPUs now (--threads): Ray waits for one that has", self._cpus)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ray.shutdown()

    @property
    def at_once(self) -> int:
        """How many units the nodes that are there now have room for."""
        return max(1, self._places())

    def map(self, work: UnitFunction, units: Sequence[Unit]) -> Iterable[list[str]]:
        """What `work` returns for each unit, in their order."""
        ray = self._ray
        task = ray.remote(num_cpus=self._cpus, num_gpus=self._gpus)(_work_there)
        shared = ray.put(work)
        running = [task.remote(shared, unit, os.getcwd(), self._cpus, __version__) for unit in units]
        names = {one: unit.name for one, unit in zip(running, units, strict=True)}
        found: dict[Any, list[str]] = {}
        left = list(running)
        while left:
            (done,), left = ray.wait(left)
            try:
                found[done] = ray.get(done)
            except ray.exceptions.RayError as error:
                found[done] = [f"{names[done]}: {_first_line(error)}"]
            log.info("%s: %s (%d of %d)", names[done], "failed" if found[done] else "done", len(found), len(units))
        return [found[one] for one in running]

    def _places(self) -> int:
        resources = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        cpus = [int(one.get("CPU", 0)) // self._cpus for one in resources]
        if not self._gpus:
            return sum(cpus)
        return sum(min(cpu, int(one.get("GPU", 0))) for cpu, one in zip(cpus, resources, strict=True))


def _work_there(work: UnitFunction, unit: Unit, folder: str, threads: int, version: str) -> list[str]:
    """One unit in a worker of Ray, which is another process, perhaps on another machine."""
    import torch

    from lm_eval_lora_drop.harness.evaluation import log_with_the_harness

    if __version__ != version:
        return [f"{unit.name}: its worker has lm-eval-lora-drop {__version__}, not {version}. Install it on all nodes."]
    try:
        os.chdir(folder)  # paths in a study's file may be relative
    except OSError as error:
        return [f"{unit.name}: every node must see {folder}, and its worker does not ({error.strerror})."]
    log_with_the_harness("INFO")
    torch.set_num_threads(threads)
    try:
        return work(unit)
    except LoraDropError as error:
        return [f"{unit.name}: {error}"]


def _first_line(error: Exception) -> str:
    """What happened; a `RayTaskError` carries the whole traceback of its worker as text."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {str(cause).strip().split(chr(10))[0]}"
