"""How often does the interval of a paired difference contain the true one, and does it ever contradict its test?

    python benchmarks/coverage.py [--samples 1000] [--recorded DIR]

Each line: a population of per-document differences and a number of documents; the share of samples whose 95 %
interval contains the population's mean (nominal .950) for the interval that `lora-drop compare` prints, Tango's alone
(0/1 only), the t interval and the bootstrap's BCa; the mean width of ours; and how often ours contains zero although
p < .05, or the other way round. The populations marked `recorded` are resampled from real scores where the folder of
recorded matrices is given (`--recorded DIR` with arith_em.json and samsum_rouge.json).
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from lm_eval_lora_drop.statistics import intervals, significance

SIZES = (20, 50, 100, 200)


@dataclass(frozen=True)
class Shape:
    """A population: `draw(rng, n)` gives the two systems' values; `mean` is the true difference."""

    name: str
    draw: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
    mean: float
    binary: bool = False


def binary(gained: float, lost: float) -> Shape:
    """0/1 scores of which these shares change, half of the rest right."""

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        u, right = rng.random(n), (rng.random(n) < 0.5).astype(float)
        gain, loss = u < gained, (u >= gained) & (u < gained + lost)
        return np.where(gain, 0.0, np.where(loss, 1.0, right)), np.where(gain, 1.0, np.where(loss, 0.0, right))

    return Shape(f"0/1, {gained:.0%} gained, {lost:.0%} lost", draw, gained - lost, True)


def numbers(name: str, difference: Callable[[np.random.Generator, int], np.ndarray], mean: float) -> Shape:
    """Scores from 0 to 1 for the baseline, and the other system's as far away as `difference` says."""

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        base = rng.random(n)
        return base, base + difference(rng, n)

    return Shape(name, draw, mean)


def recorded(name: str, one: list[float], two: list[float]) -> Shape:
    """Documents drawn with replacement from real ones."""
    a, b = np.asarray(one, float), np.asarray(two, float)

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        rows = rng.integers(0, len(a), n)
        return a[rows], b[rows]

    return Shape(name, draw, float((b - a).mean()), bool(np.isin(np.concatenate([a, b]), (0, 1)).all()))


def shapes(folder: Path | None) -> list[Shape]:
    """All populations."""
    f1 = np.array([1.0, 0.5, -0.5, 1 / 3, -2 / 3])
    found = [
        binary(0.01, 0.01),
        binary(0.05, 0.01),
        binary(0.0, 0.05),
        binary(0.05, 0.05),
        binary(0.1, 0.02),
        binary(0.1, 0.1),
        binary(0.2, 0.05),
        binary(0.3, 0.2),
        numbers("normal", lambda rng, n: rng.normal(0.03, 0.1, n), 0.03),
        numbers("skewed (gamma 0.5)", lambda rng, n: 0.1 * rng.gamma(0.5, 1, n), 0.05),
        numbers("very skewed (log-normal)", lambda rng, n: 0.1 * rng.lognormal(0, 1, n), 0.1 * np.exp(0.5)),
        numbers("5 % gain, uniform", lambda rng, n: (rng.random(n) < 0.05) * rng.random(n), 0.025),
        numbers("10 % gain, exponential", lambda rng, n: (rng.random(n) < 0.1) * 0.2 * rng.exponential(1, n), 0.02),
        numbers("20 % change, uniform", lambda rng, n: (rng.random(n) < 0.2) * rng.uniform(-1, 1, n), 0.0),
        numbers(
            "F1: 20 % change by 5 steps", lambda rng, n: (rng.random(n) < 0.2) * rng.choice(f1, n), 0.2 * f1.mean()
        ),
        numbers("ROUGE-like: 60 % change", lambda rng, n: (rng.random(n) < 0.6) * rng.laplace(-0.02, 0.1, n), -0.012),
        numbers(
            "noise of .02, 3 % gain of 1",
            lambda rng, n: np.where(rng.random(n) < 0.03, 1.0, rng.normal(0, 0.02, n)),
            0.03,
        ),
    ]
    if folder is not None:
        rouge, right = (
            {int(k): v for k, v in json.loads((folder / f"{name}.json").read_text()).items()}
            for name in ("samsum_rouge", "arith_em")
        )
        found += [recorded(f"recorded ROUGE-L, K = {k} and full", rouge[30], rouge[k]) for k in (28, 25, 15)]
        found += [recorded(f"recorded 0/1, K = {k} and full", right[30], right[k]) for k in (28, 25, 15)]
    return found


def t_interval(differences: np.ndarray) -> tuple[float, float]:
    """Student's."""
    half = stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / len(differences) ** 0.5
    return float(differences.mean() - half), float(differences.mean() + half)


def bca(differences: np.ndarray, seed: int) -> tuple[float, float]:
    """scipy's, percentile where BCa is undefined."""
    if np.ptp(differences) == 0:
        return float(differences[0]), float(differences[0])
    for method in ("BCa", "percentile"):
        found = stats.bootstrap(
            (differences,), np.mean, n_resamples=999, method=method, rng=np.random.default_rng(seed)
        ).confidence_interval
        if np.isfinite(found.low) and np.isfinite(found.high):
            break
    return float(found.low), float(found.high)


def holds(interval: tuple[float, float], mean: float) -> bool:
    """Whether the interval contains `mean`, rounding aside."""
    return interval[0] - 1e-9 <= mean <= interval[1] + 1e-9


def simulate(shape: Shape, documents: int, samples: int, *, bootstrapped: int) -> dict[str, float]:
    """Coverages of the four intervals, our width, and the share of samples where ours and the test disagree."""
    rng = np.random.default_rng(documents)
    ours, tango, t, resampled, width, contradictions = 0, 0, 0, 0, 0.0, 0
    for sample in range(samples):
        one, two = shape.draw(rng, documents)
        found = significance.mean_test(one, two, draws=499, seed=sample)
        difference = two - one
        ours += holds(found.interval, shape.mean)
        width += found.interval[1] - found.interval[0]
        contradictions += (found.p_value < significance.LEVEL) == (found.interval[0] <= 0 <= found.interval[1])
        t += holds(t_interval(difference), shape.mean)
        if shape.binary:
            gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
            tango += holds(intervals.tango(gained, lost, documents), shape.mean)
        if sample < bootstrapped:
            resampled += holds(bca(difference, sample), shape.mean)
    return {
        "ours": ours / samples,
        "tango": tango / samples if shape.binary else float("nan"),
        "t": t / samples,
        "bca": resampled / bootstrapped,
        "width": width / samples,
        "contradictions": contradictions / samples,
    }


def main() -> None:
    """Print the table, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--bootstrapped", type=int, default=200, help="samples on which BCa is tried as well")
    parser.add_argument("--recorded", type=Path, metavar="DIR", help="folder of samsum_rouge.json and arith_em.json")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    print("| differences | n | ours | Tango alone | t | BCa | width of ours | contradictions |")
    print("|---|---|---|---|---|---|---|---|")
    for shape in shapes(args.recorded):
        for documents in SIZES:
            found = simulate(shape, documents, args.samples, bootstrapped=min(args.bootstrapped, args.samples))
            alone = f"{found['tango']:.3f}" if shape.binary else ""
            shown = (f"{found[name]:.3f}" for name in ("t", "bca", "width", "contradictions"))
            cells = (shape.name, documents, f"{found['ours']:.3f}", alone, *shown)
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
