"""What the probe holds does not grow with the number of documents."""

from testing.forked import Forked


def peaks(documents):
    """Peak memory of the whole process, and of what Python and numpy allocated in it, in bytes."""
    process = Forked(["-m", "tests.engine.probe.measure_memory", str(documents)])
    out, said = process.communicate()
    assert process.returncode == 0, said
    return [int(number) for number in out.split()]


def test_two_hundred_documents_take_the_memory_of_twenty():
    few, many = peaks(20), peaks(200)
    assert abs(many[0] - few[0]) < 0.1 * few[0]
    # Half a megabyte, of which some is garbage not yet collected; the readings of 180 documents are as much again.
    assert many[1] < 1.5 * few[1]
