"""How much each selection rule loses against the best candidate, on recorded and on made-up scores.

    python benchmarks/choice_rules.py [MATRIX.json ...] [--whole] [--repeats 300] [--seed 0]

A MATRIX maps K to the per-document scores of an exhaustive sweep, {"30": [0, 1, ...], "29": ...}; a boundary is
scored on the same documents in the same order. Each is used as it is, and with a gain from dropping: the curve moved
so that its best part lies at two thirds of the layers, falling to either side as it was recorded to fall. Half of its
documents are taken at random, n are drawn of them with replacement, a rule chooses on those, and its choice is scored
on the *other* half: a bump that belongs to a few documents cannot be found on one half and paid for on the other.
With --whole all documents are drawn from and scored on, so that every bump of the record counts as true. On made-up
scores the expectations are known.

Prints the mean loss in points (hundredths of the score's range) against the candidate that is best on average, by shape
and n, then the mean over all shapes, and how many layers were kept. `unpaired` is the one-standard-error rule with
the standard error of the best score, which this project had before; `smooth 1.5` is `smooth` with that bandwidth.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from tabulate import tabulate

from lm_eval_lora_drop.options import SELECTIONS
from lm_eval_lora_drop.sweep.select import choose_rows, local_linear

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
DRAWN = (50, 100, 200)
LAYERS = 30


def chosen(rule: str, values: Floats, counts: Rows, places: Floats) -> Rows:
    """`(R,)` rows that a rule chooses from `(R, documents)` counts."""
    n = counts.sum(axis=1, keepdims=True)
    scores = counts @ values.T / n
    if rule == "unpaired":
        variance = (counts @ (values**2).T / n - scores**2) * n / (n - 1)
        errors = np.sqrt(np.maximum(variance, 0.0) / n)
        best = scores.argmax(axis=1)
        rows = np.arange(len(scores))
        within = scores >= (scores[rows, best] - errors[rows, best])[:, None] - 1e-9
        return np.asarray(len(values) - 1 - within[:, ::-1].argmax(axis=1))
    if rule == "smooth 1.5":
        return np.asarray((scores @ local_linear(places, 1.5).T).argmax(axis=1))
    return choose_rows(rule, values, scores, counts, ordered=True, places=places)[0]


RULES = (*SELECTIONS, "smooth 1.5", "unpaired")


def with_a_gain(values: Floats) -> Floats:
    """The curve moved: its first row stands at two thirds of the layers, and to either side it falls as it did."""
    peak = len(values) // 3
    rows = [row - peak if row >= peak else int(np.ceil(1.5 * (peak - row))) for row in range(len(values))]
    return values[rows]


def recorded(
    values: Floats, whole: bool, n: int, repeats: int, rng: np.random.Generator
) -> Iterator[tuple[Floats, Rows, Floats]]:
    """Values to choose on, counts of them, and the scores of the unseen half, or of all."""
    documents = values.shape[1]
    for _ in range(repeats):
        order = rng.permutation(documents)
        one, other = values[:, order[: documents // 2]], values[:, order[documents // 2 :]]
        if whole:
            one = other = values
        shares = np.full(one.shape[1], 1 / one.shape[1])
        yield one, rng.multinomial(n, shares, size=5), other.mean(axis=1)


def made_up(
    level: Floats, binary: bool, n: int, repeats: int, rng: np.random.Generator
) -> Iterator[tuple[Floats, Rows, Floats]]:
    """The same of scores with known expectations; neighbours correlate by 0.98."""
    for _ in range(repeats):
        steps = rng.normal(size=(len(level), n))
        rows = [steps[0]]
        for step in steps[1:]:
            rows.append(0.98 * rows[-1] + (1 - 0.98**2) ** 0.5 * step)
        latent = np.stack(rows)
        values = (latent < norm.ppf(level)[:, None]).astype(float) if binary else level[:, None] + 0.2 * latent
        yield values, np.ones((1, n), dtype=np.int64), level


def levels() -> dict[str, Floats]:
    """Expectations by row, the full adapter first."""
    row = np.arange(LAYERS + 1.0)
    shapes = {
        "plateau, no gain": 0.65 / (1 + np.exp((row - 12) / 2.5)),
        "falls from full, no gain": 0.65 - 0.02 * row,
        "broad peak, gain of 9 points": 0.5 + 0.12 * np.exp(-(((row - 10) / 5) ** 2)) - 0.01 * row * (row > 15),
        "sharp peak, gain of 15": 0.6 - 0.03 * np.abs(row - 5),
        "small peak, gain of 2": 0.6 + 0.03 * np.exp(-(((row - 4) / 2) ** 2)) - 0.6 / (1 + np.exp(-(row - 14) / 2)),
    }
    return {name: level.clip(0.001, 0.999) for name, level in shapes.items()}


Source = Callable[[int, int, np.random.Generator], Iterator[tuple[Floats, Rows, Floats]]]


def sources(paths: list[Path], whole: bool) -> dict[str, Source]:
    """What is simulated, by name."""
    found: dict[str, Source] = {}
    for path in paths:
        matrix = json.loads(path.read_text(encoding="utf-8"))
        values = np.array([matrix[str(k)] for k in sorted(map(int, matrix), reverse=True)], dtype=np.float64)
        values = values / max(1.0, float(np.ceil(values.max() / 100) * 100)) if values.max() > 1 else values
        for name, moved in ((path.stem, values), (f"{path.stem}, with a gain", with_a_gain(values))):
            found[name] = lambda n, repeats, rng, moved=moved: recorded(moved, whole, n, repeats, rng)
    for name, level in levels().items():
        for kind, binary in (("0/1", True), ("real", False)):
            found[f"{kind}, {name}"] = lambda n, repeats, rng, level=level, binary=binary: made_up(
                level, binary, n, repeats, rng
            )
    return found


def main() -> None:
    """Read the arguments, simulate, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("matrices", nargs="*", type=Path)
    parser.add_argument("--whole", action="store_true", help="choose and score on all documents of a matrix")
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    table, losses, layers = [], [], []
    for number, (name, source) in enumerate(sources(args.matrices, args.whole).items()):
        for n in DRAWN:
            rng = np.random.default_rng([args.seed, number, n])
            scored: dict[str, list[float]] = {rule: [] for rule in RULES}
            kept: dict[str, list[float]] = {rule: [] for rule in RULES}
            truths = []
            for values, counts, truth in source(n, args.repeats, rng):
                truths.append(truth)
                places = np.arange(len(values), 0.0, -1)
                for rule in RULES:
                    rows = chosen(rule, values, counts, places)
                    scored[rule].append(float(truth[rows].mean()))
                    kept[rule].append(float(len(values) - 1 - rows.mean()))
            top = float(np.mean(truths, axis=0).max())
            loss = [100 * max(0.0, top - float(np.mean(scored[rule]))) for rule in RULES]
            table.append([name, n, *loss])
            losses.append(loss)
            layers.append([float(np.mean(kept[rule])) for rule in RULES])
    table.append(["mean loss", "", *np.mean(losses, axis=0)])
    table.append(["largest loss", "", *np.max(losses, axis=0)])
    table.append(["layers kept", "", *np.mean(layers, axis=0)])
    print(tabulate(table, ("shape", "n", *RULES), tablefmt="github", floatfmt=("", "", *[".2f"] * len(RULES))))


if __name__ == "__main__":
    main()
