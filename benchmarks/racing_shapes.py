"""How often a race loses more than its tolerance, over shapes of scores that try to make it.

    python benchmarks/racing_shapes.py [--races 1000] [--only TEXT] [--tolerance 1] [--seed 0]

Each race draws its documents' order anew; each shape draws a new table of scores every 20 races. A race has lost when
its best candidate scores worse over all documents than the exhaustive winner by more than the tolerance. Prints one
line a shape: the share of races that lost, that ended with another candidate than a best one, and how many times fewer
(candidate, document) pairs the race asked than the exhaustive sweep.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from lm_eval.api.metrics import mean
from numpy.typing import NDArray
from tabulate import tabulate

from lm_eval_lora_drop.metrics.corpus import BLEU_ZH
from lm_eval_lora_drop.statistics.aggregation import Aggregation
from lm_eval_lora_drop.sweep.strategies.racing import Race, RacingSettings
from lm_eval_lora_drop.sweep.strategies.table import Table
from lm_eval_lora_drop.variant import Variant

Floats = NDArray[np.float64]
Items = Sequence[Sequence[Any]]
Draw = Callable[[np.random.Generator], Items]

ORDERS = 20
DOCUMENTS = 100


@dataclass(frozen=True)
class Shape:
    """Scores to race over: what draws them, `(candidates, documents)`, the full adapter first; `sign` is -1 where a
    lower one is better, `bounds` is the declared range, `whole` says whether the full adapter is among them."""

    draw: Draw
    aggregation: Aggregation = field(default_factory=lambda: Aggregation(mean))
    sign: int = 1
    bounds: tuple[float, float] | None = None
    whole: bool = True


@dataclass(frozen=True)
class Outcome:
    """One race: how much the choice lost, the tolerance it had (both in units of the score), and what it asked."""

    loss: float
    allowed: float
    pairs: int


def candidates(number: int) -> list[Variant]:
    """That many boundaries, the full adapter first."""
    return [Variant.below(boundary, number) for boundary in range(number, 0, -1)]


def race(items: Items, shape: Shape, settings: RacingSettings, seed: int) -> Outcome:
    """Race over recorded items."""
    variants, aggregation = candidates(len(items)), shape.aggregation
    documents = len(items[0])
    table = Table(variants, documents)
    table.set((v, position, item) for v, row in zip(variants, items, strict=True) for position, item in enumerate(row))
    raced = Race(
        table,
        aggregation,
        sign=shape.sign,
        full=variants[0] if shape.whole else None,
        seed=seed,
        settings=settings,
        bounds=shape.bounds,
    )
    for _ in raced.rounds():
        pass
    scores = shape.sign * np.array([aggregation.score(row) for row in items])
    best = int(scores.argmax())
    kept = max(score for variant, score in zip(variants, scores, strict=True) if variant not in raced.eliminated)
    values = aggregation.per_document(items[best])
    values = values[np.isfinite(values)]
    allowed = settings.tolerance * float(values.std(ddof=1)) / len(values) ** 0.5
    return Outcome(float(scores[best] - kept), allowed, sum(len(raced.positions(variant)) for variant in variants))


# Shapes. Rows are candidates, the full adapter first, columns documents; n is DOCUMENTS.


def coins(rng: np.random.Generator, share: float = 0.5) -> Floats:
    """0/1 scores of one candidate."""
    return (rng.random(DOCUMENTS) < share).astype(float)


def gaining(row: Floats, number: int, rng: np.random.Generator) -> Floats:
    """The same scores with `number` wrong documents (or all there are) made right."""
    made = row.copy()
    wrong = np.flatnonzero(row == 0)
    made[rng.choice(wrong, min(number, len(wrong)), replace=False)] = 1
    return made


def two(gain: int) -> Draw:
    """The second candidate is right on all that the first is right on, and on a few more."""

    def draw(rng: np.random.Generator) -> Items:
        row = coins(rng)
        return np.stack([row, gaining(row, gain, rng)])

    return draw


def close(number: int, flip: float, gain: int) -> Draw:
    """Neighbours differ on a few documents; the middle one has a few more right."""

    def draw(rng: np.random.Generator) -> Items:
        rows = [coins(rng)]
        for _ in range(1, number):
            flipped = rng.random(DOCUMENTS) < flip
            rows.append(np.where(flipped, 1 - rows[-1], rows[-1]))
        rows[number // 2] = gaining(rows[number // 2], gain, rng)
        return np.stack(rows)

    return draw


def weak_adapter(rng: np.random.Generator) -> Items:
    """31 candidates on a base that is right on half: a broad peak of +12, full at +3, the small ones at 0."""
    row = coins(rng)
    right = rng.permutation(np.flatnonzero(row == 0))[:12]
    rows = []
    for kept in range(30, -1, -1):
        made = row.copy()
        made[right[: 12 if 16 <= kept <= 22 else (3 if kept > 22 else 0)]] = 1
        rows.append(made)
    return np.stack(rows)


def rare_gains(top: float) -> Draw:
    """Every candidate a little better than the last one on nearly all documents; that one far better on four."""

    def draw(rng: np.random.Generator) -> Items:
        rows = 0.3 + 0.02 * rng.normal(size=(11, DOCUMENTS)).clip(-2, 2)
        rows[:-1] += 0.01
        rows[-1, rng.choice(DOCUMENTS, 4, replace=False)] = 1.0
        return rows * top

    return draw


def rare_losses(rng: np.random.Generator) -> Items:
    """The rivals lose a whole document where the winner gains a hundredth on most."""
    rows = 0.5 + 0.02 * rng.normal(size=(11, DOCUMENTS)).clip(-2, 2)
    rows[5] -= 0.01
    for row in (0, 1, 2, 3, 4, 6, 7, 8, 9, 10):
        rows[row, rng.choice(DOCUMENTS, 5, replace=False)] = 0.0
    return rows


def heavy_ties(rng: np.random.Generator) -> Items:
    """31 candidates at 0.95, most of them equal; five have one to four more right."""
    row = coins(rng, 0.95)
    rows = np.tile(row, (31, 1))
    for place, gain in zip(rng.choice(31, 5, replace=False), (1, 2, 3, 4, 4), strict=True):
        rows[place] = gaining(row, gain, rng)
    return rows


def correlated(number: int, rng: np.random.Generator, correlation: float = 0.97) -> Floats:
    """Normal scores of neighbours with this correlation."""
    steps = rng.normal(size=(number, DOCUMENTS))
    rows = [steps[0]]
    for step in steps[1:]:
        rows.append(correlation * rows[-1] + (1 - correlation**2) ** 0.5 * step)
    return np.stack(rows)


def right_or_wrong(level: Sequence[float], correlation: float = 0.97) -> Draw:
    """0/1 scores whose expectations are `level`."""

    def draw(rng: np.random.Generator) -> Items:
        latent = correlated(len(level), rng, correlation)
        ranks = latent.argsort(axis=1).argsort(axis=1) / DOCUMENTS
        return (ranks < np.asarray(level)[:, None]).astype(float)

    return draw


PEAK = [0.55, 0.6, 0.65, 0.68, 0.66, 0.6, 0.5, 0.4, 0.3, 0.22, *np.linspace(0.2, 0.0, 21)]
ROUGE = [33.7, 34.3, 34.9, 35.0, 33.9, 32.9, 32.6, 32.7, 32.0, 31.2, *np.linspace(30.9, 10.6, 21)]


def rouge(rng: np.random.Generator) -> Items:
    """Between 0 and 100, the curve of SAMSum's ROUGE-L."""
    return (np.array(ROUGE)[:, None] + 14 * correlated(31, rng)).clip(0, 100)


def any_order(draw: Draw) -> Draw:
    """The same candidates in an order that says nothing; the full adapter is any of them."""
    return lambda rng: rng.permutation(np.asarray(draw(rng)))


def losing_adapter(rng: np.random.Generator) -> Items:
    """The full adapter is the worst, the base model the best."""
    return np.asarray(right_or_wrong(PEAK)(rng))[::-1]


def stairs(rng: np.random.Generator) -> Items:
    """Each of 31 candidates has one more right than the one before: small losses could add up."""
    right = rng.permutation(DOCUMENTS)
    return np.stack([(right < 40 + step).astype(float) for step in range(31)])


def log_likelihoods(rng: np.random.Generator) -> Items:
    """Heavy tails without a bound, the middle candidate better by 0.3 of a scale."""
    rows = -40 + 3 * correlated(11, rng, 0.9) + rng.standard_t(2.5, size=(11, DOCUMENTS))
    rows[5] += 0.9
    return rows


def bleu(level: Sequence[float]) -> Draw:
    """Items of corpus BLEU: references of 12 signs, each kept with a candidate's own probability."""
    signs = np.array(list("天地玄黄宇宙洪荒日月盈昃辰宿列张"))

    def draw(rng: np.random.Generator) -> Items:
        references = rng.choice(signs, size=(DOCUMENTS, 12))
        luck = rng.random((DOCUMENTS, 12))
        items = []
        for keep in level:
            own = np.where(rng.random((DOCUMENTS, 12)) < 0.1, rng.random((DOCUMENTS, 12)), luck)
            said = np.where(own < keep, references, "某")
            items.append([BLEU_ZH.statistics("".join(a), "".join(b)) for a, b in zip(said, references, strict=True)])
        return items

    return draw


def missing(draw: Draw, share: float, *, same: bool) -> Draw:
    """The same with values on a share of the documents only: the same ones for all candidates, or each its own."""

    def drawn(rng: np.random.Generator) -> Items:
        rows = np.asarray(draw(rng))
        there = rng.random((1, DOCUMENTS) if same else rows.shape) < share
        return np.where(there, rows, np.nan)

    return drawn


def losses(draw: Draw, top: float) -> Draw:
    """What lacks to the best score: lower is better."""
    return lambda rng: top - np.asarray(draw(rng))


def clusters(draw: Draw, size: int) -> Draw:
    """Documents of a cluster score alike: every `size`-th column, repeated `size` times."""

    def drawn(rng: np.random.Generator) -> Items:
        rows = np.asarray(draw(rng))
        return np.repeat(rows[:, ::size], size, axis=1)[:, :DOCUMENTS]

    return drawn


UNIT, PERCENT = (0.0, 1.0), (0.0, 100.0)
SHAPES: dict[str, Shape] = {
    name: Shape(draw, Aggregation(BLEU_ZH if name.startswith("BLEU") else mean))
    for name, draw in {
        "two candidates, ten more right of 100": two(10),
        "two, six more right": two(6),
        "two, twenty more right": two(20),
        "5 close, middle +8": close(5, 0.02, 8),
        "11 close, middle +8": close(11, 0.02, 8),
        "31 close, middle +8": close(31, 0.02, 8),
        "31, weak adapter, broad peak": weak_adapter,
        "rare large gains, scores 0 to 1": rare_gains(1.0),
        "rare large gains, scores 0 to 100": rare_gains(100.0),
        "rare large losses": rare_losses,
        "heavy ties at 0.95": heavy_ties,
        "stairs of one document": stairs,
        "peaked curve, 0/1": right_or_wrong(PEAK),
        "peaked curve, any order": any_order(right_or_wrong(PEAK)),
        "peaked curve, uncorrelated": right_or_wrong(PEAK, 0.0),
        "adapter that harms": losing_adapter,
        "ROUGE-L curve, 0 to 100": rouge,
        "all equal at 0.5": right_or_wrong([0.5] * 31),
        "all equal at 0.05": right_or_wrong([0.05] * 31),
        "log-likelihoods, heavy tails": log_likelihoods,
        "BLEU, peak among 7": bleu((0.8, 0.84, 0.86, 0.84, 0.75, 0.6, 0.3)),
        "BLEU, 7 equal": bleu((0.8,) * 7),
    }.items()
} | {
    "range declared: peaked curve, 0/1": Shape(right_or_wrong(PEAK), bounds=UNIT),
    "range declared: rare large gains": Shape(rare_gains(1.0), bounds=UNIT),
    "25 % have a value, the same": Shape(missing(right_or_wrong(PEAK), 0.25, same=True), bounds=UNIT),
    "75 % have a value, each its own": Shape(missing(right_or_wrong(PEAK), 0.75, same=False), bounds=UNIT),
    "lower is better, 0/1, range declared": Shape(losses(right_or_wrong(PEAK), 1.0), sign=-1, bounds=UNIT),
    "lower is better, 0/1": Shape(losses(right_or_wrong(PEAK), 1.0), sign=-1),
    "lower is better, rare large gains": Shape(losses(rare_gains(1.0), 1.0), sign=-1, bounds=UNIT),
    "lower is better, 0 to 100": Shape(losses(rouge, 100.0), sign=-1, bounds=PERCENT),
    "20 clusters of 5, 0/1": Shape(clusters(right_or_wrong(PEAK), 5), bounds=UNIT),
    "10 clusters of 10, 31 close": Shape(clusters(close(31, 0.02, 8), 10), bounds=UNIT),
    "a greedy round, 11 close": Shape(close(11, 0.02, 8), bounds=UNIT, whole=False),
    "a greedy round, all equal": Shape(right_or_wrong([0.5] * 11), bounds=UNIT, whole=False),
}


def races(name: str, number: int, settings: RacingSettings, seed: int) -> list[Outcome]:
    """`number` races over one shape."""
    shape = SHAPES[name]
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    outcomes: list[Outcome] = []
    while len(outcomes) < number:
        items = shape.draw(rng)
        if isinstance(items, np.ndarray):
            items = np.where(np.isnan(items), None, items).tolist()
        orders = rng.integers(1 << 30, size=min(ORDERS, number - len(outcomes)))
        outcomes += [race(items, shape, settings, int(order)) for order in orders]
    return outcomes


def summary(name: str, outcomes: Sequence[Outcome], total: int) -> tuple[str, int, float, float, float]:
    """Name, races, share that lost more than the tolerance, share that lost anything, times fewer pairs."""
    lost = float(np.mean([one.loss > one.allowed + 1e-9 for one in outcomes]))
    other = float(np.mean([one.loss > 1e-9 for one in outcomes]))
    return name, len(outcomes), lost, other, total / float(np.mean([one.pairs for one in outcomes]))


def main() -> None:
    """Read the arguments, race, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = RacingSettings()
    parser.add_argument("--races", type=int, default=1000)
    parser.add_argument("--only", default="", help="shapes whose name holds this")
    parser.add_argument("--seed", type=int, default=0)
    for name in ("error_rate", "tolerance", "first_round", "growth"):
        value = getattr(defaults, name)
        parser.add_argument(f"--{name}", type=type(value), default=value)
    args = parser.parse_args()
    settings = RacingSettings(args.error_rate, args.tolerance, args.first_round, args.growth)
    rows = []
    for name, shape in SHAPES.items():
        if args.only in name:
            rows_of, outcomes = len(shape.draw(np.random.default_rng(0))), races(name, args.races, settings, args.seed)
            rows.append(summary(name, outcomes, rows_of * DOCUMENTS))
    heads = ("shape", "races", "lost more than the tolerance", "not the winner", "times fewer pairs")
    print(tabulate(rows, heads, tablefmt="github", floatfmt=("", "", ".3f", ".3f", ".2f")))


if __name__ == "__main__":
    main()
