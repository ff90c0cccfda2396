"""The shared pass as if on a GPU, on one device and with the layers spread over two: see `pretend_device`."""

import json
import subprocess
import sys

from testing.forked import ROOT
from testing.tiny import ARCHITECTURES

WAITS = 4
"""At most so many times a forward (a decoding step, a batch of log-likelihoods) may the host wait for the device, and
never more often than in the plain pass. With an upload for each of the four layers it would be seven and more."""
LAUNCHES = 1.25
"""At most so many times the plain pass's launches may a forward take, for all variants at once."""
DIFFERENT = ["gemma2", "gpt2", "llama"]
"""Of architectures that hand the same things from layer to layer one is enough where the layers are spread."""
SAME = {"gemma", "mistral", "phi", "phi3", "qwen2", "qwen3"}
"""Hand nothing else from layer to layer than those that are tried."""


def test_nothing_is_mixed_and_the_host_seldom_waits():
    architectures = sorted(ARCHITECTURES.keys() - SAME)
    # A fresh process: the device has to be there before Transformers is imported.
    command = [sys.executable, "-m", "testing.pretend_device", *architectures, "--two", *DIFFERENT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {k: v for line in done.stdout.splitlines() if line.startswith("{") for k, v in json.loads(line).items()}
    assert list(found) == [*architectures, *(f"{one}, two" for one in DIFFERENT)]
    wrong = []
    for architecture, kinds in found.items():
        assert kinds.keys() == {"generation", "few-shot", "loglikelihood", "rolling"}
        for kind, passes in kinds.items():
            shared, plain = passes["shared"], passes["plain"]
            few = shared["waits"] <= min(WAITS, plain["waits"]) and shared["launches"] <= LAUNCHES * plain["launches"]
            if shared["failed"] or not (shared.get("equal") and plain.get("equal") and few):
                wrong.append((architecture, kind, passes))
    assert not wrong
