"""How often a sweep calls a candidate better or worse that is not, and how often it finds one that is.

    python benchmarks/equal_means.py [--sweeps 200] [--only TEXT] [--power] [--seed 0]

Each sweep draws 31 candidates whose differences to full have a mean of zero, in shapes that try to make a verdict
wrong: skewed losses, missing values, clusters. Columns: the share of sweeps with a false verdict on any candidate by
sign flips with Bonferroni's correction, by Student's t corrected for skewness with Bonferroni's, and by the test of
this package (the larger of both p-values, adjusted by step-down minP). `--power` has one candidate with a true gain
instead, and the share of sweeps that find it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from lm_eval_lora_drop.statistics.clusters import cluster_sums
from lm_eval_lora_drop.statistics.randomisation import mean_tests as sign_flips
from lm_eval_lora_drop.statistics.significance import mean_tests, skewed_p_values

Floats = NDArray[np.float64]
Draw = Callable[[int, np.random.Generator], Floats]
CANDIDATES = 30
DRAWS = 1999


def walk(documents: int, rng: np.random.Generator) -> Floats:
    """Normal differences, `(documents, candidates)`; neighbours correlate by 0.97."""
    steps = rng.normal(size=(CANDIDATES, documents))
    rows = [steps[0]]
    for step in steps[1:]:
        rows.append(0.97 * rows[-1] + (1 - 0.97**2) ** 0.5 * step)
    return np.stack(rows, axis=1)


def rare_losses(share: float, *, noise: float = 0.02, shared: bool = False) -> Draw:
    """A loss of a half on a share of the documents, and as much gained on the others."""

    def draw(documents: int, rng: np.random.Generator) -> Floats:
        lost = rng.random((documents, 1 if shared else CANDIDATES)) < share
        return np.where(lost, -0.5, share * 0.5 / (1 - share)) + noise * rng.normal(size=(documents, CANDIDATES))

    return draw


def changing(documents: int, rng: np.random.Generator) -> Floats:
    """Differences of 0/1 scores: each candidate changes on a tenth of the documents."""
    return rng.choice([-1.0, 0.0, 1.0], p=[0.05, 0.9, 0.05], size=(documents, CANDIDATES))


def missing(draw: Draw, share: float, *, same: bool) -> Draw:
    """The same with values on a share of the documents only."""

    def drawn(documents: int, rng: np.random.Generator) -> Floats:
        there = rng.random((documents, 1 if same else CANDIDATES)) < share
        return np.where(there, draw(documents, rng), np.nan)

    return drawn


def log_normal(documents: int, rng: np.random.Generator) -> Floats:
    """Losses as long as a text: log-normal, mean taken off."""
    return np.exp(0.5) - np.exp(rng.normal(size=(documents, CANDIDATES)))


EQUAL: dict[str, Draw] = {
    "normal, neighbours alike": walk,
    "heavy tails (t, 2.5)": lambda n, rng: rng.standard_t(2.5, size=(n, CANDIDATES)),
    "0/1, 10 % change": changing,
    "0/1, 25 % have a value, the same": missing(changing, 0.25, same=True),
    "0/1, 50 % have a value, each its own": missing(changing, 0.5, same=False),
    "normal, 25 % have a value, the same": missing(walk, 0.25, same=True),
    "losses: gamma 0.5": lambda n, rng: 0.5 - rng.gamma(0.5, 1.0, (n, CANDIDATES)),
    "losses: log-normal": log_normal,
    "losses on 20 %, noise .1": rare_losses(0.2, noise=0.1),
    "losses on 10 %, noise .02": rare_losses(0.1),
    "losses on 5 %, the same documents": rare_losses(0.05, shared=True),
    "losses on 5 %, each its own": rare_losses(0.05),
    "losses on 2 %, each its own": rare_losses(0.02),
}


def gain(others: float, shown: int) -> Draw:
    """One candidate gains 1.0 with a standard deviation of 2; the others lose more and more."""

    def draw(documents: int, rng: np.random.Generator) -> Floats:
        found = 2 * walk(documents, rng)[:, :shown]
        return found + np.concatenate([[1.0], -others * np.arange(1, shown)])

    return draw


POWER: dict[str, Draw] = {
    "gain of 1.0, K = 24..30": gain(0.0, 6),
    "gain of 1.0, K = 0..30": gain(0.0, 30),
    "gain of 1.0, K = 0..30, others lose up to 30": gain(1.0, 30),
}


def found(differences: Floats, codes: NDArray[np.int64] | None, seed: int) -> tuple[bool, bool, bool]:
    """Whether any candidate is called different by each method."""
    known = np.isfinite(differences)
    units, weights = np.where(known, differences, 0.0), known.astype(np.float64)
    if codes is not None:
        units, weights = cluster_sums(units, codes), cluster_sums(weights, codes)
    signs = np.array([test.p_value for test in sign_flips(units, draws=DRAWS, seed=seed)])
    ours = mean_tests(differences, np.zeros(len(differences)), clusters=codes, draws=DRAWS, seed=seed)
    several = len(signs)
    return (
        bool(signs.min() * several < 0.05),
        bool(skewed_p_values(units, weights).min() * several < 0.05),
        min(test.p_value for test in ours) < 0.05,
    )


def main() -> None:
    """Read the arguments, simulate, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=200)
    parser.add_argument("--only", default="")
    parser.add_argument("--power", action="store_true")
    parser.add_argument("--documents", type=int, nargs="+", default=[20, 50, 100, 200])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = []
    for name, draw in (POWER if args.power else EQUAL).items():
        for documents in args.documents if args.only in name else ():
            rng = np.random.default_rng([args.seed, documents])
            # With a gain, only the first candidate counts: the others are rejected for what they lose.
            held = [_one(draw(documents, rng), seed, args.power) for seed in range(args.sweeps)]
            rows.append([name, documents, *np.mean(held, axis=0)])
    heads = ("differences to full", "documents", "sign flips, Bonferroni", "skewness-corrected t, Bonferroni", "ours")
    print(tabulate(rows, heads, tablefmt="github", floatfmt=("", "", *[".3f"] * 3)))


def _one(differences: Floats, seed: int, power: bool) -> tuple[bool, bool, bool]:
    if not power:
        return found(differences, None, seed)
    several = differences.shape[1]
    sign = sign_flips(differences[:, :1], draws=DRAWS, seed=seed)[0].p_value
    skewed = float(skewed_p_values(differences[:, :1], np.ones((len(differences), 1)))[0])
    ours = mean_tests(differences, np.zeros(len(differences)), draws=DRAWS, seed=seed)[0].p_value
    return sign * several < 0.05, skewed * several < 0.05, ours < 0.05


if __name__ == "__main__":
    main()
