"""How racing would have fared on recorded scores: an exhaustive sweep's results file, replayed over many shuffles.

    python benchmarks/racing_replay.py RESULTS.json [--task NAME] [--shuffles 200] [--prior_keeps 12-30]

Prints one JSON line: how many times fewer (boundary, document) pairs racing asked than the exhaustive sweep, in how
many shuffles it chose the exhaustive winner, and in how many a boundary within one standard error of it.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_lora_drop.boundary import format_integers, parse_sweep_boundaries
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.sweep.racing import RacingSettings
from lm_eval_lora_drop.sweep.recorded import RecordedSweep


def read_entry(path: Path, task: str | None) -> tuple[str, Mapping[str, Any]]:
    """The named task's entry of a results file, or the only one.

    Raises:
        ArgumentError: the file has no such entry.
    """
    tasks = json.loads(path.read_text(encoding="utf-8"))["config"]["lora_drop"]["tasks"]
    if task is None and len(tasks) == 1:
        task = next(iter(tasks))
    if task not in tasks:
        raise ArgumentError(f"--task must name a task of {path}, got {task!r}. There are: {', '.join(tasks)}.")
    return task, tasks[task]


def replay(recorded: RecordedSweep, shuffles: int, settings: RacingSettings) -> dict[str, Any]:
    """Race over `shuffles` orders of the documents, and compare with the choice over all of them."""
    scores = recorded.scores(np.ones((1, recorded.documents), dtype=np.int64))[0]
    winner = recorded.boundaries[int(recorded.choose(scores[None], recorded.stderr)[0])]
    row = recorded.boundaries.index(winner)
    of = dict(zip(recorded.boundaries, scores, strict=True))
    races = [recorded.race(seed, settings) for seed in range(shuffles)]
    all_pairs = len(recorded.boundaries) * recorded.documents
    return {
        "boundaries": format_integers(recorded.boundaries),
        "documents": recorded.documents,
        "shuffles": shuffles,
        "winner": winner,
        "same_choice": round(float(np.mean([chosen == winner for chosen, _ in races])), 4),
        "within_one_se": round(float(np.mean([of[c] >= of[winner] - recorded.stderr[row] for c, _ in races])), 4),
        "pairs_ratio": round(all_pairs / float(np.mean([pairs for _, pairs in races])), 2),
        **asdict(settings),
    }


def subset(recorded: RecordedSweep, keep: tuple[int, ...]) -> RecordedSweep:
    """The same record with the boundaries of `keep` only, as if a prior had retired the others."""
    rows = [index for index, boundary in enumerate(recorded.boundaries) if boundary in keep]
    return replace(
        recorded,
        boundaries=tuple(recorded.boundaries[row] for row in rows),
        items=tuple(recorded.items[row] for row in rows),
        stderr=recorded.stderr[rows],
    )


def main() -> None:
    """Read the arguments, replay, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = RacingSettings()
    parser.add_argument("results", type=Path)
    parser.add_argument("--task")
    parser.add_argument("--shuffles", type=int, default=200)
    parser.add_argument("--documents", type=int, help="take this many of the documents, drawn with seed 0")
    parser.add_argument("--prior_keeps", help="boundaries that a prior lets into the race, e.g. 12-30")
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    args = parser.parse_args()
    task, entry = read_entry(args.results, args.task)
    recorded = RecordedSweep.from_entry(entry)
    if args.documents is not None:
        drawn = sorted(random.Random(0).sample(range(recorded.documents), args.documents))
        stderr = recorded.stderr * (recorded.documents / args.documents) ** 0.5
        recorded = replace(recorded, items=tuple(tuple(row[i] for i in drawn) for row in recorded.items), stderr=stderr)
    settings = RacingSettings(**{name: getattr(args, name) for name in asdict(defaults)})
    exhaustive = len(recorded.boundaries)
    if args.prior_keeps:
        recorded = subset(recorded, parse_sweep_boundaries(args.prior_keeps))
    found = replay(recorded, args.shuffles, settings)
    found["pairs_ratio"] = round(found["pairs_ratio"] * exhaustive / len(recorded.boundaries), 2)
    print(json.dumps({"task": task, **found}))


if __name__ == "__main__":
    main()
