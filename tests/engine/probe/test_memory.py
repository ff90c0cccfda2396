"""What the probe holds does not grow with the number of documents."""

import subprocess
import sys

from tests.conftest import ROOT


def peaks(documents):
    """Peak memory of the whole process, and of what Python and numpy allocated in it, in bytes."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.engine.probe.measure_memory", str(documents)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return [int(number) for number in done.stdout.split()]


def test_two_hundred_documents_take_the_memory_of_twenty():
    few, many = peaks(20), peaks(200)
    assert abs(many[0] - few[0]) < 0.1 * few[0]
    # Half a megabyte, of which some is garbage not yet collected; the readings of 180 documents are as much again.
    assert many[1] < 1.5 * few[1]
