"""How often a greedy search reports a gain where no layer matters: on the documents that found the path, on others.

    python benchmarks/greedy_noise.py [--searches 200] [--documents 60] [--layers 30]

Each layer adds normal noise of mean 0 to every document's score, so no set of layers truly gains. `run_greedy` searches
backward on the first half of the documents. Columns: the share of searches in which the simultaneous 95 % band of any
set on the path lies above the full adapter, on the half that found the path and on the other half, whose comparison is
the one that is reported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import common
import numpy as np
from lm_eval.api.metrics import mean
from tabulate import tabulate

from lm_eval_lora_drop.harness.documents import Document
from lm_eval_lora_drop.record.schema import SweepRecord
from lm_eval_lora_drop.statistics.aggregation import Aggregation
from lm_eval_lora_drop.sweep.candidates import make_candidates
from lm_eval_lora_drop.sweep.metric import resolve_metric
from lm_eval_lora_drop.sweep.recorded import RecordedSweep
from lm_eval_lora_drop.sweep.run import SweepSettings
from lm_eval_lora_drop.sweep.score import Scorer
from lm_eval_lora_drop.sweep.strategies.greedy import halves, run_greedy
from lm_eval_lora_drop.sweep.trust import gains_over_full
from lm_eval_lora_drop.variant import AdapterShape, Variant

sys.path.insert(0, str(common.ROOT))
from testing.recorded_runs import candidate, sweep_record
from testing.toy import make_task

MEAN = Aggregation(mean)


def main() -> None:
    """Search, and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--layers", type=int, default=30)
    args = parser.parse_args()
    found = np.array([search(seed, args.documents, args.layers) for seed in range(args.searches)])
    same, other = found.mean(axis=0)
    head = ["searches", "documents", "layers", "gain on the same half", "gain on the other half"]
    print(tabulate([[args.searches, args.documents, args.layers, same, other]], head, tablefmt="github"))


def search(seed: int, documents: int, layers: int) -> tuple[bool, bool]:
    """Whether one search finds a gain on the half that found its path, and on the other."""
    noise = np.random.default_rng(seed).normal(size=(documents, layers))
    task = make_task(splits={"test": [{"question": "q", "answer": "a"}]})
    scorer = Scorer(task, resolve_metric(task, None))

    def items(variant: Variant, some: Sequence[Document]) -> tuple[float, ...]:
        return tuple(noise[[one.doc_id for one in some]][:, sorted(variant.kept_layers)].sum(axis=1).tolist())

    def sweep_on(some: Sequence[Document], how: SweepSettings) -> SweepRecord:
        values = {variant: items(variant, some) for variant in how.candidates.variants}
        rows = tuple(candidate(v, float(np.mean(x)), 0.0, len(x), items=x) for v, x in values.items())
        best = max(values, key=lambda variant: np.mean(values[variant]))
        return sweep_record(rows, chosen=best, layers=layers)

    def gains(some: Sequence[Document], path: Sequence[Variant]) -> bool:
        table = tuple(items(variant, some) for variant in path)
        full = Variant.full(layers)
        swept = RecordedSweep(tuple(path), table, full, "best", 1, full, MEAN, (), False)
        return any(gain.low > 0 for gain in gains_over_full(swept).values())

    every = [Document(number, {}, (), str(number)) for number in range(documents)]
    settings = SweepSettings(make_candidates(["greedy"], AdapterShape(layers)), strategy="exhaustive")
    sweep, comparing = run_greedy(every, sweep_on, scorer, settings)
    path = [Variant.parse(one.variant, layers) for one in sweep.candidates]
    return gains(halves(every)[0], path), gains(comparing, path)


if __name__ == "__main__":
    main()
