"""What is said beside a choice where documents belong together and all candidates are equally good.

    python benchmarks/sweep_clusters.py [--sweeps 300] [--seed 0]

Each sweep draws eight candidates of equal expectation on clusters that rise and fall together (half of the variance is
the cluster's). Columns: the share of sweeps whose simultaneous band excludes zero for some candidate, and the standard
error of a candidate's difference to full as a share of the true one, by cluster and as if documents were independent.
"""

from __future__ import annotations

import argparse

import numpy as np
from tabulate import tabulate

from lm_eval_lora_drop.statistics.clusters import cluster_codes, mean_stderr
from lm_eval_lora_drop.statistics.significance import mean_tests

CANDIDATES = 8
SHAPES = {"20 of 5": [5] * 20, "50 of 2": [2] * 50, "40 of 1 to 9": [1, 3, 5, 9] * 10, "8 of 12": [12] * 8}


def simulated(sizes: list[int], binary: bool, sweeps: int, seed: int) -> list[float]:
    """The columns of one row."""
    rng = np.random.default_rng([seed, len(sizes), binary])
    codes = cluster_codes([str(number) for number, size in enumerate(sizes) for _ in range(size)])
    alone = cluster_codes([None] * len(codes))
    missed, errors, means = np.zeros(2), np.zeros(2), []
    for sweep in range(sweeps):
        values = rng.normal(size=(CANDIDATES, len(sizes)))[:, codes] + rng.normal(size=(CANDIDATES, len(codes)))
        if binary:
            values = (values > 0).astype(float)
        means.append((values[1] - values[0]).mean())
        for column, given in enumerate((codes, alone)):
            tests = mean_tests(values[1:].T, values[0], draws=999, seed=sweep, clusters=given)
            missed[column] += any(test.p_value < 0.05 for test in tests)
            errors[column] += mean_stderr(values[1] - values[0], given)
    return [*(missed / sweeps), *(errors / sweeps / np.std(means))]


def main() -> None:
    """Read the arguments, simulate, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = [
        [name, shape, *simulated(sizes, name == "0/1", args.sweeps, args.seed)]
        for name in ("numbers", "0/1")
        for shape, sizes in SHAPES.items()
    ]
    heads = ("scores", "clusters", "band misses, by cluster", "by document", "error, by cluster", "by document")
    print(tabulate(rows, heads, tablefmt="github", floatfmt=("", "", ".3f", ".3f", ".2f", ".2f")))


if __name__ == "__main__":
    main()
