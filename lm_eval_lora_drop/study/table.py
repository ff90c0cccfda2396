"""The cells of a study as a table: one row for each training and choice, over its seeds."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from tabulate import tabulate

from lm_eval_lora_drop.files import write_atomically
from lm_eval_lora_drop.record.plain import plain
from lm_eval_lora_drop.study.config import Study
from lm_eval_lora_drop.study.plan import plan, read_cell

FILE = "study.json"


def finished(study: Study) -> list[dict[str, Any]]:
    """What every finished cell wrote, in the order of the plan."""
    cells = [cell for _, group in plan(study) for cell in group]
    return [entry for cell in cells if (entry := read_cell(study, cell)) is not None]


def table(study: Study) -> str:
    """Per task, training and choice: seeds, boundaries found, the first score's mean and standard deviation over seeds.

    The standard deviation is that between seeds; what the documents leave open is in each run's own results.
    """
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for entry in finished(study):
        key = (entry["task"], entry["training"] or entry["cell"].split()[0], entry["choice"])
        groups.setdefault(key, []).append(entry)
    rows = []
    for (task, training, choice), entries in groups.items():
        name = next((one for one in entries[0]["scores"] if "_stderr" not in one), None)
        scores = [entry["scores"][name] for entry in entries] if name else []
        boundaries = [entry["variant"] if entry["boundary"] is None else entry["boundary"] for entry in entries]
        rows.append(
            [
                task, training, choice, len(entries), " ".join(map(str, boundaries)), (name or "").split(",")[0],
                statistics.fmean(scores) if scores else None,
                statistics.stdev(scores) if len(scores) > 1 else None,
                entries[0]["documents"],
            ]
        )  # fmt: skip
    head = ["task", "training", "choice", "seeds", "K", "metric", "mean", "sd over seeds", "documents"]
    return tabulate(rows, headers=head, floatfmt=".3f", missingval="")


def write_table(study: Study) -> Path:
    """Write all finished cells to one file."""
    file = study.output / FILE
    write_atomically(file, json.dumps(plain(finished(study)), indent=1) + "\n")
    return file
