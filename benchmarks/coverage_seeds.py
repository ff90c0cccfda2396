"""How often does an interval over documents and training seeds contain the true mean of a paired difference?

    python benchmarks/coverage_seeds.py [--samples 1000] [--only TEXT]

Each line is a population: how far the adapters of different seeds differ in their mean gain, how far documents do, how
much is left (a seed's luck on a document), and whether scores are 0/1. The share of samples whose 95 % interval
contains the population's mean (nominal .950) for the interval that `lora-drop study` prints (`crossed`), for one over
documents alone, and for a bootstrap that draws seeds and documents (2,000 resamples of both); and how often each says
that something differs where the population's mean is 0.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lm_eval_lora_drop.statistics.crossed import crossed_mean
from lm_eval_lora_drop.statistics.intervals import mean_interval

RESAMPLES = 2_000


@dataclass(frozen=True)
class Population:
    """`seeds`, `documents`, `rest`: standard deviations of a paired difference. `binary`: of a latent score, and the
    difference is that of two 0/1 scores; `sparse` leaves all but this share of documents equal under both systems;
    `collapse`: what one seed in ten loses on every document, the others being better by a ninth of it."""

    name: str
    seeds: float
    documents: float
    rest: float
    binary: bool = False
    sparse: float = 1.0
    collapse: float = 0.0

    def draw(self, rng: np.random.Generator, seeds: int, documents: int) -> np.ndarray:
        """`(seeds, documents)` differences, of mean 0 in the population."""
        of_seeds = rng.normal(0, self.seeds, (seeds, 1))
        if self.collapse:
            of_seeds -= self.collapse * np.where(rng.random((seeds, 1)) < 0.1, 1.0, -1 / 9)
        of_documents = rng.normal(0, self.documents, (1, documents))
        latent = of_seeds + of_documents + rng.normal(0, self.rest, (seeds, documents))
        changed = rng.random((1, documents)) < self.sparse
        if not self.binary:
            return np.where(changed, latent, 0.0)
        base = rng.normal(0, 1, (1, documents))
        noise = rng.normal(0, self.rest, (seeds, documents))
        one, two = base + noise > 0, base + noise + latent > 0
        return np.where(changed, two.astype(float) - one.astype(float), 0.0)


POPULATIONS = (
    Population("seeds alike", 0.0, 1.0, 1.0),
    Population("seeds differ as much as documents leave open", 0.1, 1.0, 1.0),
    Population("seeds differ more", 0.3, 1.0, 1.0),
    Population("only seeds differ", 0.3, 0.0, 1.0),
    Population("documents alike under all seeds", 0.1, 1.0, 0.05),
    Population("0/1, seeds alike", 0.0, 0.3, 0.5, binary=True),
    Population("0/1, seeds differ", 0.3, 0.3, 0.5, binary=True),
    Population("0/1, 5 % of the documents can change", 0.3, 0.5, 0.5, binary=True, sparse=0.05),
    Population("5 % of the documents can change", 0.2, 1.0, 0.5, sparse=0.05),
    Population("one seed in ten collapses", 0.02, 1.0, 0.5, collapse=1.0),
    Population("one seed in ten collapses deeply", 0.02, 1.0, 0.5, collapse=3.0),
)


def measure(population: Population, seeds: int, documents: int, samples: int) -> dict[str, object]:
    """Shares of samples in which the intervals miss 0, the truth."""
    rng = np.random.default_rng(1)
    covered = dict.fromkeys(("crossed", "over_documents", "bootstrap"), 0)
    rejected = 0
    width = 0.0
    for _ in range(samples):
        values = population.draw(rng, seeds, documents)
        largest = 1.0 if population.binary else float(np.ptp(values)) or 1.0
        found = crossed_mean(values, span=largest)
        low, high = found.interval
        width += (high - low) / samples
        rejected += found.p_value < 0.05
        limits = {
            "crossed": found.interval,
            "over_documents": mean_interval(values.mean(axis=0), span=largest),
            "bootstrap": bootstrap(values, rng),
        }
        for name, (lowest, highest) in limits.items():
            covered[name] += lowest <= 0 <= highest
    shares = {name: round(count / samples, 3) for name, count in covered.items()}
    return {
        "population": population.name,
        "seeds": seeds,
        "documents": documents,
        **shares,
        "width": round(width, 3),
        "rejected": round(rejected / samples, 3),
    }


def bootstrap(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Percentiles over resamples of seeds and of documents, both drawn with replacement (Owen, 2007)."""
    seeds, documents = values.shape
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    of_documents = rng.multinomial(documents, np.full(documents, 1 / documents), size=RESAMPLES) / documents
    means = ((of_seeds @ values) * of_documents).sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def rows(samples: int, only: str) -> Iterator[dict[str, object]]:
    """All populations whose name has `only` in it, with 2, 3 and 5 seeds, 50 and 200 documents."""
    for population in (one for one in POPULATIONS if only in one.name):
        for seeds in (2, 3, 5):
            for documents in (50, 200):
                yield measure(population, seeds, documents, samples)


def main() -> None:
    """Print one JSON line for each population and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--only", default="", help="populations whose name has this in it")
    args = parser.parse_args()
    for row in rows(args.samples, args.only):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
