"""Fixtures that several rooms need."""

import functools
import gc
import logging
import os
import resource
import signal
from contextlib import contextmanager
from pathlib import Path

# Nothing in the tests may go to the network; the Hub client would otherwise try, and retry. It reads this when it is
# imported.
os.environ["HF_HUB_OFFLINE"] = "1"
# Models this small are slower on several threads, most of all on a busy machine; programs that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest

from lm_eval_lora_drop.record import fingerprint
from lm_eval_lora_drop.show.listeners.figure import SweepFigure

ROOT = Path(__file__).parents[1]
_hear = SweepFigure.hear


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Nothing that is imported will ever be garbage: the collector need not go through it, now or in each test."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(optionalhook=True)  # where vLLM is installed there is no xdist
def pytest_xdist_auto_num_workers():
    """One more than there are cores, for tests that kill and start again leave theirs idle; four at most."""
    return min(4, (os.cpu_count() or 1) + 1)


@pytest.fixture(scope="session", autouse=True)
def _read_once(tmp_path_factory):
    """What every evaluation reads of this machine is read once; lm-eval's own tasks once for all workers."""
    # Not at the top: with xdist a process that runs no test reads this file too.
    import torch
    from torch.utils import collect_env

    from testing import task_files
    from testing.forked import Forked

    torch.set_num_threads(1)
    collect_env.get_pretty_env_info = functools.cache(collect_env.get_pretty_env_info)
    fingerprint.version = functools.cache(fingerprint.version)
    # The figure beside each journal takes longer than the sweep of a tiny model.
    SweepFigure.hear = lambda self, event: None
    base = tmp_path_factory.getbasetemp()
    kept = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "task-index"
    task_files.read_once(kept)
    Forked.task_index = kept


@pytest.fixture(autouse=True)
def _log_of_this_test_only():
    """The harness logs to the stream of the test that sets it up first; closed, it would disturb every later test."""
    harness = logging.getLogger("lm_eval")
    before = harness.handlers[:], harness.level, harness.propagate
    yield
    harness.handlers[:], harness.level, harness.propagate = before


@pytest.fixture
def sweep_figures(monkeypatch):
    """Sweeps of this process draw a figure beside their journal, as they do for users."""
    monkeypatch.setattr(SweepFigure, "hear", _hear)


@pytest.fixture
def small_disk():
    """`with small_disk(n)`: whatever this process writes beyond n bytes of a file is refused, as by a full disk."""

    @contextmanager
    def disk(size):
        limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)

    return disk


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """The folder of a tiny Llama with four layers."""
    from testing.tiny import make_base

    return make_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def tiny_adapter(tiny_base):
    """The folder of a LoRA adapter with B != 0 on every linear layer of `tiny_base`."""
    from testing.tiny import make_adapter

    return make_adapter(tiny_base, tiny_base.parent / "adapter")


@pytest.fixture(scope="session")
def smollm2():
    """The folder of SmolLM2-135M-Instruct, as demo/prepare_model.py writes it."""
    folder = Path(os.environ.get("LORA_DROP_SMOLLM2", ROOT / ".demo" / "SmolLM2-135M-Instruct"))
    if not (folder / "config.json").is_file():
        pytest.skip("SmolLM2-135M-Instruct is not here: run demo/prepare_model.py, or set LORA_DROP_SMOLLM2")
    return folder


def _shared(name):
    folder = ROOT.parent / "shared" / name
    if not folder.is_dir():
        pytest.skip(f"../shared/{name} is not here; it holds {name} that cannot be committed")
    return folder


@pytest.fixture(scope="session")
def shared_data():
    """The folder of benchmark samples, for local tests."""
    return _shared("data")


@pytest.fixture(scope="session")
def shared_adapters():
    """The folder of trained adapters for SmolLM2, for local tests."""
    return _shared("adapters")
