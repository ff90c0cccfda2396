"""How racing would have fared on recorded scores: an exhaustive sweep's results file, replayed over many shuffles.

    python benchmarks/racing_replay.py RESULTS.json [--task NAME] [--shuffles 200]

Prints one JSON line: how many times fewer (candidate, document) pairs racing asked than the exhaustive sweep, in how
many shuffles it chose the exhaustive winner, and in how many a candidate within one standard error of it.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.schema import TaskRecord, from_config
from lm_eval_lora_drop.statistics.aggregation import Aggregation
from lm_eval_lora_drop.sweep.recorded import RecordedSweep
from lm_eval_lora_drop.sweep.strategies.racing import RacingSettings
from lm_eval_lora_drop.variant import Variant


def read_task(path: Path, task: str | None) -> tuple[str, TaskRecord]:
    """The named task's record in a results file, or the only one.

    Raises:
        ArgumentError: the file has no such record.
    """
    run = from_config(json.loads(path.read_text(encoding="utf-8"))["config"], path)
    tasks = {} if run is None else run.tasks
    if task is None and len(tasks) == 1:
        task = next(iter(tasks))
    if task is None or task not in tasks:
        raise ArgumentError(f"--task must name a task of {path}, got {task!r}. There are: {', '.join(tasks)}.")
    return task, tasks[task]


def recorded_sweep(task: TaskRecord) -> RecordedSweep:
    """The exhaustive sweep that the record holds.

    Raises:
        ArgumentError: it holds none.
    """
    sweep, metric = task.sweep, task.metric
    if sweep is None or metric is None or sweep.strategy != "exhaustive":
        raise ArgumentError(
            f"this needs an exhaustive sweep, got method={task.method!r}. Evaluate with boundary=auto,"
            "sweep_strategy=exhaustive."
        )
    variants = tuple(Variant.parse(row.variant, task.num_layers) for row in sweep.candidates)
    return RecordedSweep(
        candidates=variants,
        items=tuple(row.items for row in sweep.candidates),
        chosen=Variant.parse(sweep.chosen, task.num_layers),
        select=sweep.select,
        sign=metric.sign,
        full=next((variant for variant in variants if variant.is_full), None),
        aggregation=Aggregation.named(sweep.aggregation),
        left_out=(),
        ordered=sweep.ordered,
    )


def replay(recorded: RecordedSweep, shuffles: int, settings: RacingSettings) -> dict[str, Any]:
    """Race over `shuffles` orders of the documents, and compare with the best over all of them."""
    scores = recorded.scores(np.ones((1, recorded.documents), dtype=np.int64))[0]
    best = int(scores.argmax())
    error = float(recorded.values[best].std(ddof=1)) / recorded.documents**0.5
    of = dict(zip(recorded.candidates, scores, strict=True))
    races = [recorded.race(seed, settings) for seed in range(shuffles)]
    all_pairs = len(recorded.candidates) * recorded.documents
    return {
        "candidates": len(recorded.candidates),
        "documents": recorded.documents,
        "shuffles": shuffles,
        "winner": recorded.candidates[best].label,
        "same_score": round(float(np.mean([of[chosen] >= scores[best] - 1e-9 for chosen, _ in races])), 4),
        "within_one_se": round(float(np.mean([of[chosen] >= scores[best] - error for chosen, _ in races])), 4),
        "pairs_ratio": round(all_pairs / float(np.mean([pairs for _, pairs in races])), 2),
        **asdict(settings),
    }


def main() -> None:
    """Read the arguments, replay, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = RacingSettings()
    parser.add_argument("results", type=Path)
    parser.add_argument("--task")
    parser.add_argument("--shuffles", type=int, default=200)
    parser.add_argument("--documents", type=int, help="take this many of the documents, drawn with seed 0")
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    args = parser.parse_args()
    name, task = read_task(args.results, args.task)
    recorded = recorded_sweep(task)
    if args.documents is not None:
        drawn = sorted(random.Random(0).sample(range(recorded.documents), args.documents))
        recorded = replace(recorded, items=tuple(tuple(row[place] for place in drawn) for row in recorded.items))
    settings = RacingSettings(**{field: getattr(args, field) for field in asdict(defaults)})
    print(json.dumps({"task": name, **replay(recorded, args.shuffles, settings)}))


if __name__ == "__main__":
    main()
