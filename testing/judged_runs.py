"""Runs of two systems on a task for judges."""

import json

from testing.run_files import write_run


def write_judged(folder, outputs, *, name):
    """A run with logged samples whose task tells judges what they have to know."""
    path = write_run(folder, {"rouge_l": [0.0] * len(outputs)}, outputs=outputs, name=name)
    data = json.loads(path.read_text())
    data["configs"]["t"]["metadata"] = {"judge": {"kind": "summary", "source": "question"}}
    path.write_text(json.dumps(data))
    return path
