"""How often what is printed beside a choice is wrong when all candidates are equally good.

    python benchmarks/equal_boundaries.py [--sweeps 1000] [--seed 0]

Each sweep draws 31 candidates of equal expectation, neighbours correlated, chooses by a rule and says its verdict.
Columns: the share of sweeps whose verdict is wrong (`better` or `worse`), whose band misses any candidate's true
difference (zero), whose interval for the chosen one misses it, and, for comparison, of the sentences this project
used to print: "beats the full adapter in at least 95 % of the resamples" and "the gain is more than two standard
errors".
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from lm_eval.api.metrics import mean
from numpy.typing import NDArray
from tabulate import tabulate

from lm_eval_lora_drop.statistics.aggregation import Aggregation
from lm_eval_lora_drop.statistics.clusters import draw_cluster_counts
from lm_eval_lora_drop.sweep.recorded import RecordedSweep
from lm_eval_lora_drop.sweep.select import choose, places_of
from lm_eval_lora_drop.sweep.strategies.racing import Race
from lm_eval_lora_drop.sweep.strategies.table import Table
from lm_eval_lora_drop.sweep.trust import Evidence, gains_over_full
from lm_eval_lora_drop.variant import Variant

Floats = NDArray[np.float64]
CANDIDATES = tuple(Variant.below(boundary, 30) for boundary in range(30, -1, -1))
MEAN = Aggregation(mean)


def latent(documents: int, rng: np.random.Generator) -> Floats:
    """Standard normal, `(31, documents)`; neighbours correlate by 0.97."""
    steps = rng.normal(size=(len(CANDIDATES), documents))
    rows = [steps[0]]
    for step in steps[1:]:
        rows.append(0.97 * rows[-1] + (1 - 0.97**2) ** 0.5 * step)
    return np.stack(rows)


def sparse(documents: int, rng: np.random.Generator) -> Floats:
    """0/1; each candidate differs from full on 3 % of the documents, for better or worse alike."""
    full = rng.random(documents) < 0.5
    flips = rng.random((len(CANDIDATES), documents)) < 0.03
    flips[0] = False
    return (full ^ flips).astype(float)


SCORES: dict[str, Callable[[int, np.random.Generator], Floats]] = {
    "0/1 at 0.5": lambda n, rng: (latent(n, rng) < 0).astype(float),
    "0/1 at 0.05": lambda n, rng: (latent(n, rng) < -1.645).astype(float),
    "0/1, 3 % differ": sparse,
    "ROUGE-like": lambda n, rng: (33 + 14 * latent(n, rng)).clip(0, 66),
    "heavy tails": lambda n, rng: latent(n, rng) + rng.standard_t(2.5, size=(len(CANDIDATES), n)),
}


def recorded(values: Floats, select: str, eliminated: frozenset[Variant] = frozenset()) -> RecordedSweep:
    """The record of a sweep over these scores."""
    left = [row for row, variant in enumerate(CANDIDATES) if variant not in eliminated]
    candidates = tuple(CANDIDATES[row] for row in left)
    items = tuple(tuple(values[row].tolist()) for row in left)
    choice = choose(select, items, MEAN, 1, ordered=True, places=places_of(candidates))
    gone = tuple(variant for variant in CANDIDATES if variant in eliminated)
    return RecordedSweep(candidates, items, candidates[choice.chosen], select, 1, CANDIDATES[0], MEAN, gone, True)


def raced(values: Floats, seed: int) -> frozenset[Variant]:
    """What a race eliminates."""
    table = Table(CANDIDATES, values.shape[1])
    table.set((v, place, item) for v, row in zip(CANDIDATES, values, strict=True) for place, item in enumerate(row))
    race = Race(table, MEAN, sign=1, full=CANDIDATES[0], seed=seed)
    for _ in race.rounds():
        pass
    return frozenset(race.eliminated)


def said(values: Floats, select: str, seed: int) -> tuple[bool, ...]:
    """For one sweep: what of the columns holds."""
    documents = values.shape[1]
    eliminated = raced(values, seed) if select == "racing" else frozenset()
    record = recorded(values, "best" if select == "racing" else select, eliminated)
    gains = gains_over_full(record, seed=seed)
    chosen = gains[record.chosen]
    row = CANDIDATES.index(record.chosen)
    difference = values[row] - values[0]
    resampled = draw_cluster_counts(np.arange(documents), 500, seed) @ difference
    error = difference.std(ddof=1) / documents**0.5
    return (
        chosen.evidence in (Evidence.BETTER, Evidence.WORSE),
        any(gain.low > 0 or gain.high < 0 for gain in gains.values()),
        not chosen.low <= 0 <= chosen.high,
        bool(np.mean(resampled > 1e-9) >= 0.95),
        bool(difference.mean() > 2 * error),
    )


def main() -> None:
    """Read the arguments, simulate, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = []
    for name, draw in SCORES.items():
        for documents, select in ((4, "smooth"), (20, "smooth"), (50, "best"), (100, "smooth"), (100, "racing")):
            rng = np.random.default_rng([args.seed, documents, len(rows)])
            held = [said(draw(documents, rng), select, int(rng.integers(1 << 30))) for _ in range(args.sweeps)]
            rows.append([name, documents, select, *np.mean(held, axis=0)])
    heads = ("scores", "documents", "choice", "verdict wrong", "band misses", "interval misses", "≥ 95 %", "> 2 errors")
    print(tabulate(rows, heads, tablefmt="github", floatfmt=("", "", "", *[".3f"] * 5)))


if __name__ == "__main__":
    main()
