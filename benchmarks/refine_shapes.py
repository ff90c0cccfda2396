"""What `sweep_strategy=refine` loses and saves, and whether its verdicts hold where all candidates are equal.

    python benchmarks/refine_shapes.py [--sweeps 20] [--equal 400] [--seed 0]

First table: mean loss against the best candidate (points, in the curves' own expectations) and asked
(candidate, document) pairs of exhaustive, racing and refine, the latter by `smooth` and by `best`. Scores are 0/1 on
100 documents, neighbours correlate by 0.97. Second table: all expectations equal; the share of sweeps in which any
candidate that was asked is called better or worse than full, with the correction over the whole set (as in the package)
and over the asked candidates alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from lm_eval.api.metrics import mean
from numpy.typing import NDArray
from scipy.stats import norm
from tabulate import tabulate

from lm_eval_lora_drop.statistics.aggregation import Aggregation
from lm_eval_lora_drop.sweep.recorded import RecordedSweep
from lm_eval_lora_drop.sweep.select import choose, places_of
from lm_eval_lora_drop.sweep.strategies.refine import Refine
from lm_eval_lora_drop.sweep.strategies.table import Table
from lm_eval_lora_drop.sweep.trust import ERROR_RATE, Evidence, gains_over_full
from lm_eval_lora_drop.variant import Variant

Floats = NDArray[np.float64]
MEAN = Aggregation(mean)
DOCUMENTS = 100
DEPTHS = (18, 32, 80)


def peak(place: Floats, at: float, width: float, height: float) -> Floats:
    """A bump over the share of layers kept."""
    return np.asarray(height * np.exp(-0.5 * ((place - at) / width) ** 2))


CURVES: dict[str, Callable[[Floats], Floats]] = {
    "rises to full": lambda p: 0.2 + 0.4 * p**0.5,
    "one peak": lambda p: 0.2 + 0.3 * p + peak(p, 0.75, 0.1, 0.15),
    "two peaks": lambda p: 0.3 + 0.1 * p + peak(p, 0.35, 0.06, 0.25) + peak(p, 0.8, 0.06, 0.2),
    "plateau, narrow peak": lambda p: 0.5 + peak(p, 0.62, 0.4 / (len(p) - 1), 0.15),
    "noise only": lambda p: np.full(len(p), 0.5),
}
"""Share of layers kept, `(L + 1,)`, from 1 to 0 -> expectations."""


def normals(rows: int, documents: int, correlation: float, rng: np.random.Generator) -> Floats:
    """Standard normal, `(rows, documents)`, neighbours correlated."""
    steps = rng.normal(size=(rows, documents))
    for row in range(1, rows):
        steps[row] = correlation * steps[row - 1] + (1 - correlation**2) ** 0.5 * steps[row]
    return steps


def scored(expected: Floats, rng: np.random.Generator) -> Floats:
    """0/1 scores of these expectations, `(candidates, DOCUMENTS)`, neighbours alike."""
    return (normals(len(expected), DOCUMENTS, 0.97, rng) < norm.ppf(expected)[:, None]).astype(float)


def on_grid(rows: int, rng: np.random.Generator) -> Floats:
    """Every fourth candidate is the full adapter in all but name, each other one has noise of its own."""
    noise = (rng.random((rows, DOCUMENTS)) < 0.5).astype(float)
    noise[::4] = noise[0]
    return noise


def sparse(rows: int, rng: np.random.Generator) -> Floats:
    """Each candidate differs from full on some 10 % of the documents, for better or worse alike."""
    full = rng.random(DOCUMENTS) < 0.5
    flips = rng.random((rows, DOCUMENTS)) < 0.1
    flips[0] = False
    return (full ^ flips).astype(float)


EQUAL: dict[str, Callable[[int, np.random.Generator], Floats]] = {
    **{
        f"0/1, neighbours correlate by {correlation}": lambda rows, rng, correlation=correlation: (
            normals(rows, DOCUMENTS, correlation, rng) < 0
        ).astype(float)
        for correlation in (0.97, 0.7)
    },
    "normal, neighbours correlate by 0.7": lambda rows, rng: normals(rows, DOCUMENTS, 0.7, rng),
    "0/1, 10 % differ": sparse,
    "0/1, every fourth equals full": on_grid,
}
"""Candidates of equal expectation: number of them -> scores."""


def exhaustive(values: Floats, select: str = "smooth") -> RecordedSweep:
    """The record of a sweep over `(candidates, documents)` scores, the full adapter first."""
    layers = len(values) - 1
    variants = tuple(Variant.below(boundary, layers) for boundary in range(layers, -1, -1))
    items = tuple(map(tuple, values.tolist()))
    chosen = variants[choose(select, items, MEAN, 1, ordered=True, places=places_of(variants)).chosen]
    return RecordedSweep(variants, items, chosen, select, 1, variants[0], MEAN, (), True, range=(0.0, 1.0))


def refined(whole: RecordedSweep, select: str) -> RecordedSweep:
    """The record of refine over the same scores."""
    items = dict(zip(whole.candidates, whole.items, strict=True))

    def best(among: Sequence[Variant]) -> Variant:
        rows = [items[one] for one in among]
        return among[choose(select, rows, MEAN, 1, ordered=True, places=places_of(among)).best]

    plan = Refine(Table(whole.candidates, whole.documents), best)
    for _ in plan.rounds():
        pass
    asked = tuple(one for one in whole.candidates if plan.positions(one))
    return replace(
        whole,
        candidates=asked,
        items=tuple(items[one] for one in asked),
        chosen=best(asked),
        select=select,
        left_out=tuple(one for one in whole.candidates if one not in asked),
    )


def losses(curve: str, layers: int, sweeps: int, seed: int) -> list[float | int]:
    """Mean loss of each strategy in points, then mean pairs of each."""
    rng = np.random.default_rng([seed, layers, list(CURVES).index(curve)])
    expected = CURVES[curve](np.linspace(1, 0, layers + 1))
    found = []
    for _ in range(sweeps):
        whole = exhaustive(scored(expected, rng))
        ours = [refined(whole, select) for select in ("smooth", "best")]
        raced, pairs = whole.race(int(rng.integers(1 << 30)))
        plain = exhaustive(np.array(whole.items), "best")
        chosen = [whole.chosen, plain.chosen, raced, *(one.chosen for one in ours)]
        regret = [100 * float(expected.max() - expected[whole.candidates.index(one)]) for one in chosen]
        found.append([*regret, (layers + 1) * DOCUMENTS, pairs, *(len(one.candidates) * DOCUMENTS for one in ours)])
    means = np.mean(found, axis=0).tolist()
    return [*means[:5], *map(round, means[5:])]


def errors(shape: str, layers: int, sweeps: int, seed: int) -> list[float]:
    """Shares of sweeps with a wrong verdict on any candidate that was asked: over the set, over the asked alone."""
    rng = np.random.default_rng([seed, layers, list(EQUAL).index(shape)])
    wrong = []
    for _ in range(sweeps):
        gains = gains_over_full(refined(exhaustive(EQUAL[shape](layers + 1, rng)), "smooth")).values()
        verdict = any(gain.evidence in (Evidence.BETTER, Evidence.WORSE) for gain in gains)
        # Adjusted p-values are over the asked candidates; the package holds them against their share of .05.
        wrong.append([verdict, any(gain.p_value < ERROR_RATE for gain in gains)])
    return np.mean(wrong, axis=0).tolist()


def main() -> None:
    """Read the arguments, simulate, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=20)
    parser.add_argument("--equal", type=int, default=400, help="sweeps a row of the second table")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    heads = ["scores", "layers", "smooth", "best", "racing", "refine, smooth", "refine, best"]
    heads += ["pairs: all", "racing", "refine, smooth", "refine, best"]
    rows = [[curve, depth, *losses(curve, depth, args.sweeps, args.seed)] for curve in CURVES for depth in DEPTHS]
    rows.append(["mean", "", *np.mean([row[2:] for row in rows], axis=0).tolist()])
    print(tabulate(rows, heads, tablefmt="github", floatfmt=("", "", *[".2f"] * 5, *[".0f"] * 4)), flush=True)
    heads = ["scores, all equal, 32 layers", "sweeps", "verdict wrong", "corrected over the asked alone"]
    rows = [[shape, args.equal, *errors(shape, 32, args.equal, args.seed)] for shape in EQUAL]
    print("", tabulate(rows, heads, tablefmt="github", floatfmt=("", "", ".3f", ".3f")), sep="\n")


if __name__ == "__main__":
    main()
