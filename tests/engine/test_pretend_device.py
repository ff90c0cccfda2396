"""The shared pass as if on a GPU, on one device and with the layers spread over two: see `pretend_device`."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.tiny import ARCHITECTURES

WAITS = 2
"""At most so many times a forward (a decoding step, a batch of log-likelihoods) may the host wait for the device."""
LAUNCHES = 1.25
"""At most so many times the plain pass's launches may a forward take, for all variants at once."""


@pytest.fixture(scope="module", params=["one", "two"])
def found(request):
    """What `pretend_device` found on one device or two, by architecture; one process for all, most of it is imports."""
    command = [sys.executable, "-m", "tests.engine.pretend_device", *sorted(ARCHITECTURES)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(
        command + ["--two"] * (request.param == "two"), cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {k: v for line in done.stdout.splitlines() if line.startswith("{") for k, v in json.loads(line).items()}


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_nothing_is_mixed_and_the_host_seldom_waits(found, architecture):
    kinds = found[architecture]
    assert kinds.keys() == {"generation", "few-shot", "loglikelihood", "rolling"}
    for kind, passes in kinds.items():
        shared, plain = passes["shared"], passes["plain"]
        assert shared["failed"] is None, kind
        assert shared.get("equal"), kind
        assert plain.get("equal"), kind
        assert shared["waits"] <= WAITS, (kind, shared)
        assert shared["launches"] <= LAUNCHES * plain["launches"], (kind, shared, plain)
