"""How often `sweep_select=smallest:0.99` and `smallest_confident:0.99` take a candidate that truly keeps less.

    python benchmarks/smallest_bound.py [--sweeps 300] [--seed 0]

31 nested boundaries, each of which loses a little more of the full adapter's score than the one above it; those below
K = 25 keep less than 99 %. Columns: the share of sweeps whose choice lies below, by the plain rule and by the confident
one, in which the plain rule's choice is said to be shown, and the layers that both keep.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from lm_eval.api.metrics import mean
from numpy.typing import NDArray
from tabulate import tabulate

from lm_eval_lora_drop.record.metric import MetricSpec
from lm_eval_lora_drop.record.schema import CandidateRecord, SweepRecord
from lm_eval_lora_drop.statistics.aggregation import Aggregation
from lm_eval_lora_drop.sweep.tradeoffs.bounds import BoundedCriterion, ScoredCandidates, choose_within, parse_bounded
from lm_eval_lora_drop.variant import Variant

Floats = NDArray[np.float64]
LAYERS, WITHIN = 30, 25
STEP = 0.01 / (LAYERS - WITHIN)
"""Of the full adapter's score, lost with each layer: K = 25 keeps 99 % exactly."""


def nested(documents: int, rng: np.random.Generator) -> Floats:
    """0/1 scores: what a candidate loses, all smaller ones lose."""
    full = (rng.random(documents) < 0.7).astype(float)
    lost_at = np.floor(rng.random(documents) / STEP)
    return np.array([np.where(lost_at < dropped, 0.0, full) for dropped in range(LAYERS + 1)])


def each_its_own(documents: int, rng: np.random.Generator) -> Floats:
    """0/1 scores: each candidate loses documents of its own."""
    full = (rng.random(documents) < 0.7).astype(float)
    return np.array([np.where(rng.random(documents) < STEP * dropped, 0.0, full) for dropped in range(LAYERS + 1)])


def numbers(documents: int, rng: np.random.Generator) -> Floats:
    """Scores like ROUGE-L: candidates differ by noise beside what they lose."""
    full = rng.beta(2, 3, documents)
    noise = rng.normal(0, 0.03, (LAYERS + 1, documents)).cumsum(axis=0)
    rows = full + noise - STEP * 0.4 * np.arange(LAYERS + 1)[:, None]
    return np.concatenate([full[None], rows[1:]])


SHAPES: dict[str, Callable[[int, np.random.Generator], Floats]] = {
    "0/1, nested": nested,
    "0/1, each its own": each_its_own,
    "ROUGE-like": numbers,
}


@dataclass(frozen=True)
class _Scorer:
    """What the bounds ask of a sweep's scorer."""

    metric: MetricSpec
    aggregation: Aggregation
    resamples: int = 10


def chosen(values: Floats, rule: str) -> tuple[int, bool]:
    """The K that a rule takes, and whether its bound is said to be shown."""
    variants = [Variant.below(boundary, LAYERS) for boundary in range(LAYERS, -1, -1)]
    documents = values.shape[1]
    rows = tuple(
        CandidateRecord(
            variant=str(variant),
            score=float(row.mean()),
            stderr=float(row.std(ddof=1) / documents**0.5),
            documents=documents,
            items=tuple(row.tolist()),
        )
        for variant, row in zip(variants, values, strict=True)
    )
    full = rows[0].variant
    sweep = SweepRecord(
        candidate_set="boundary",
        ordered=True,
        strategy="exhaustive",
        select="best",
        seed=0,
        engine="shared",
        aggregation="mean",
        candidates=rows,
        chosen=full,
        best=full,
    )
    goal = parse_bounded(rule)
    assert goal is not None
    sizes = {str(variant): len(variant.kept_layers) for variant in variants}
    scored = ScoredCandidates(rows, _Scorer(MetricSpec("acc", "none", True), Aggregation(mean)), None)
    found = choose_within(sweep, goal, scored, {}, BoundedCriterion.of(goal, sweep, (), sizes, LAYERS, sign=1))
    return sizes[found.chosen], found.bounds[0].shown


def main() -> None:
    """Read the arguments, simulate, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = []
    for name, draw in SHAPES.items():
        for documents in (20, 50, 100, 200):
            rng = np.random.default_rng([args.seed, documents])
            held = []
            for _ in range(args.sweeps):
                values = draw(documents, rng)
                plain, shown = chosen(values, "smallest:0.99")
                sure, _ = chosen(values, "smallest_confident:0.99")
                held.append([plain < WITHIN, sure < WITHIN, plain < WITHIN and shown, plain, sure])
            rows.append([name, documents, *np.mean(held, axis=0)])
    rules = ("smallest", "smallest_confident")
    heads = ("scores", "documents", *rules, "said to be shown", *(f"layers, {rule}" for rule in rules))
    print(tabulate(rows, heads, tablefmt="github", floatfmt=("", "", *[".3f"] * 3, ".1f", ".1f")))


if __name__ == "__main__":
    main()
