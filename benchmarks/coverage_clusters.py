"""Intervals and tests where documents belong together, and intervals of corpus scores.

    python benchmarks/coverage_clusters.py [--samples 500]

First table: questions on passages (or rows of dialogues) whose differences rise and fall together; the share of samples
whose 95 % interval contains the true difference, 0, and the share with p < .05, by cluster and as if documents were
independent. Second table: BLEU of a corpus drawn from a population of 4,000 made-up documents; the share of samples
whose interval contains the population's difference, and how often interval and test contradict each other.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from sacrebleu.metrics.bleu import BLEU

from lm_eval_lora_drop.statistics.clusters import cluster_codes
from lm_eval_lora_drop.statistics.corpus import corpus_test
from lm_eval_lora_drop.statistics.significance import mean_test

WORDS = [f"w{index}" for index in range(40)]
Values = tuple[np.ndarray, np.ndarray]


def numbers(rng: np.random.Generator, codes: np.ndarray) -> Values:
    """Half of the variance of a difference is its cluster's."""
    base = rng.random(len(codes))
    return base, base + rng.normal(0, 0.1, codes.max() + 1)[codes] + rng.normal(0, 0.1, len(codes))


def labels(rng: np.random.Generator, codes: np.ndarray) -> Values:
    """0/1: a tenth of the clusters change altogether, in either direction."""
    change = rng.choice([-1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], codes.max() + 1)[codes]
    right = rng.integers(0, 2, len(codes)).astype(float)
    return np.where(change == 0, right, change < 0).astype(float), np.where(change == 0, right, change > 0).astype(
        float
    )


def clustered(draw: Callable[[np.random.Generator, np.ndarray], Values], sizes: list[int], samples: int) -> list[float]:
    """Coverage and rejections by cluster, then by document."""
    codes = cluster_codes([str(number) for number, size in enumerate(sizes) for _ in range(size)])
    counts = np.zeros(4)
    for sample in range(samples):
        one, two = draw(np.random.default_rng((len(sizes), sample)), codes)
        for column, clusters in ((0, codes), (2, None)):
            found = mean_test(one, two, clusters=clusters, draws=499, seed=sample)
            counts[column] += found.interval[0] <= 0 <= found.interval[1]
            counts[column + 1] += found.p_value < 0.05
    return list(counts / samples)


def corpora(share: float) -> tuple[list[str], list[str], list[str]]:
    """4,000 documents: references, and two outputs of which `share` differ, the second's a little worse."""
    rng = np.random.default_rng(0)
    references, one, two = [], [], []
    for _ in range(4_000):
        words = rng.choice(WORDS, rng.integers(5, 25))
        noisy = [np.where(rng.random(len(words)) < rate, "x", words) for rate in (0.3, 0.33)]
        references.append(" ".join(words))
        one.append(" ".join(noisy[0]))
        two.append(" ".join(noisy[1 if rng.random() < share else 0]))
    return references, one, two


def corpus(documents: int, share: float, samples: int) -> tuple[float, float]:
    """Coverage, and contradictions of interval and test."""
    metric = BLEU()
    references, one, two = corpora(share)
    truth = metric.corpus_score(two, [references]).score - metric.corpus_score(one, [references]).score
    covered = contradictions = 0
    for sample in range(samples):
        rows = np.random.default_rng((documents, sample)).integers(0, 4_000, documents)
        drawn = [[side[row] for row in rows] for side in (one, two, references)]
        found = corpus_test(metric, *drawn, draws=199, seed=sample)
        covered += found.interval[0] <= truth <= found.interval[1]
        contradictions += (found.p_value < 0.05) == (found.interval[0] <= 0 <= found.interval[1])
    return covered / samples, contradictions / samples


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=500)
    args = parser.parse_args()
    print("| differences | clusters | contain 0, by cluster | p < .05 | contain 0, by document | p < .05 |")
    print("|---|---|---|---|---|---|")
    for name, draw in (("numbers", numbers), ("0/1", labels)):
        shapes = {"20 of 5": [5] * 20, "50 of 2": [2] * 50, "100 of 2": [2] * 100, "40 of 1 to 9": [1, 3, 5, 9] * 10}
        for shape, sizes in shapes.items():
            shares = " | ".join(f"{value:.3f}" for value in clustered(draw, sizes, args.samples))
            print(f"| {name} | {shape} | {shares} |", flush=True)
    print(
        "\n| documents | differing outputs | contain the true difference of BLEU | contradictions |\n|---|---|---|---|"
    )
    for share in (1.0, 0.3, 0.05):
        for documents in (20, 50, 100, 200):
            covered, contradictions = corpus(documents, share, args.samples)
            print(f"| {documents} | {share:.0%} | {covered:.3f} | {contradictions:.3f} |", flush=True)


if __name__ == "__main__":
    main()
