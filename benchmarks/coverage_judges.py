"""How often do the intervals of GPT-Scores contain the truth?

    python benchmarks/coverage_judges.py [--samples 1000]

Simulated judges score simulated outputs from 0 to 10. `panel`: the 95 % interval of `lora-drop compare` for the paired
difference of two systems, whose truth is the mean over all documents and all judges of the kind; judges differ in how
harsh they are and in how much they prefer a system. `people`: the prediction-powered interval of `lora-drop judge
people` for the mean that people would give, from `n` documents scored by people and 300 by the panel. `prefer`: that of
`lora-drop judge collect --judged` for a win rate, from `n` pairs compared by people and 300 by the panel. Nominal .950;
with 1,000 samples the standard error is .007.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from lm_eval_lora_drop.judge.people import filled, powered_mean, powered_share
from lm_eval_lora_drop.statistics import crossed


@dataclass(frozen=True)
class Shape:
    """`taste`: standard deviation over judges of their preference of a system; `noise`: of a score.

    `missing`: the share of documents that the last judge leaves out, `by_quality` the worst ones. `people`: documents
    scored by people.
    """

    name: str
    judges: int = 3
    taste: float = 0.0
    noise: float = 1.0
    harsh: float = 0.0
    random: bool = False
    missing: float = 0.0
    by_quality: bool = False
    people: int = 0
    skewed: bool = False
    prefer: float = 0.0
    """The share of pairs in which people prefer the first system; 0: people score."""


SHAPES = (
    Shape("judges agree", noise=0.3),
    Shape("judges agree but for noise"),
    Shape("one harsh judge", harsh=3.0),
    Shape("one random judge", random=True),
    Shape("judges differ in taste", taste=0.3),
    Shape("missing at random, 20 %", missing=0.2, harsh=3.0),
    Shape("missing where bad, 20 %", missing=0.2, harsh=3.0, by_quality=True),
    Shape("skewed scores", skewed=True),
    Shape("people 10, biased panel", people=10, harsh=3.0),
    Shape("people 30, biased panel", people=30, harsh=3.0),
    Shape("people 30, random panel", people=30, random=True, judges=1),
    Shape("people 30, skewed scores", people=30, skewed=True),
    Shape("people 30, missing where bad, 20 %", people=30, harsh=3.0, missing=0.2, by_quality=True),
    Shape("people prefer, 10 pairs", people=10, prefer=0.6),
    Shape("people prefer, 30 pairs", people=30, prefer=0.6),
    Shape("people prefer, 10 pairs, 95 % wins", people=10, prefer=0.95),
)
DOCUMENTS = 300


def qualities(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """What people would score, 0 to 10."""
    if shape.skewed:
        return np.where(rng.random(DOCUMENTS) < 0.85, rng.normal(9, 0.5, DOCUMENTS), rng.normal(3, 1.5, DOCUMENTS))
    return rng.normal(6, 1.5, DOCUMENTS)


def panel(shape: Shape, quality: np.ndarray, taste: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`(judges, documents)` scores."""
    scores = quality + taste[:, None] + rng.normal(0, shape.noise, (shape.judges, DOCUMENTS))
    scores[-1] -= shape.harsh
    if shape.random:
        scores[-1] = rng.uniform(0, 10, DOCUMENTS)
    return scores


def covers(shape: Shape, rng: np.random.Generator) -> bool:
    """Whether the interval of one sample contains the truth."""
    quality = qualities(shape, rng)
    if shape.people:
        n = shape.people
        if shape.prefer:
            return prefers(shape, rng)
        human = quality + rng.normal(0, 1, DOCUMENTS)
        scores = np.clip(panel(shape, quality, np.zeros(shape.judges), rng), 0, 10)
        scores[-1, quality < np.quantile(quality, shape.missing)] = np.nan
        judged = filled(scores)
        low, high = powered_mean(human[:n], judged[:n], judged[n:]).interval
        truth = 0.85 * 9 + 0.15 * 3 if shape.skewed else 6.0
        return low <= truth <= high
    gain = rng.normal(0, 0.7, DOCUMENTS)  # of mean 0 in the population
    taste = rng.normal(0, shape.taste, shape.judges)
    one = panel(shape, quality, np.zeros(shape.judges), rng)
    two = panel(shape, quality + gain, taste, rng)
    kept = np.ones(DOCUMENTS, dtype=bool)
    if shape.missing:
        gone = np.argsort(quality if shape.by_quality else rng.random(DOCUMENTS))[: int(shape.missing * DOCUMENTS)]
        kept[gone] = False
    low, high = crossed.crossed_mean((two - one)[:, kept], span=10.0).interval
    return low <= 0.0 <= high


def prefers(shape: Shape, rng: np.random.Generator) -> bool:
    """As `covers`, of preferences with 20 % ties; each judge follows people on 80 % of the pairs, else it says 1."""
    n, ties = shape.people, 0.2
    human = np.where(rng.random(DOCUMENTS) < ties, 50.0, 100.0 * (rng.random(DOCUMENTS) < shape.prefer))
    follows = rng.random((shape.judges, DOCUMENTS)) < 0.8
    judged = np.where(follows, human, 100.0).mean(axis=0)
    low, high = powered_share(human[:n], judged[:n], judged[n:]).interval
    return low <= 50 * ties + 100 * (1 - ties) * shape.prefer <= high


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    samples = parser.parse_args().samples
    # A tenth of the draws: the interval's ends are known to 3 % instead of 1 %, four times as fast.
    crossed.DRAWS = 10_000
    print("| shape | coverage of the 95 % interval |\n|---|---|")
    for place, shape in enumerate(SHAPES):
        rng = np.random.default_rng(place)
        share = sum(covers(shape, rng) for _ in range(samples)) / samples
        print(f"| {shape.name} | {share:.3f} |", flush=True)


if __name__ == "__main__":
    main()
