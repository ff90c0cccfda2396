"""How often does something get a mark although every system is the same?

    python benchmarks/randomisation_table.py [--samples 500]

Systems are held against a baseline on five tasks of 100 documents, two of them 0/1. All differences are chance.
Printed: the share of samples in which a given system has any mark (Holm over the five tests of this pair, at .05), in
which any system has one, and in which any has a double mark (Holm over all tests of the table).
"""

from __future__ import annotations

import argparse

import numpy as np

from lm_eval_lora_drop.show.report.corrections import corrected
from lm_eval_lora_drop.statistics.significance import mean_p_values

TASKS, DOCUMENTS = 5, 100


def differences(rng: np.random.Generator, task: int, systems: int) -> np.ndarray:
    """`(documents, systems)` between each system and the baseline, whose scores they share."""
    if task < 2:
        right = rng.random((DOCUMENTS, 1)) ** 0.5
        return (rng.random((DOCUMENTS, systems)) < right).astype(float) - (rng.random((DOCUMENTS, 1)) < right)
    return rng.gamma(1.0, 1.0, (DOCUMENTS, systems)) - rng.gamma(1.0, 1.0, (DOCUMENTS, 1))


def simulate(systems: int, samples: int) -> tuple[float, float, float]:
    """Shares of samples with a mark of the first system, of any, with a double mark of any."""
    counts = np.zeros(3)
    for sample in range(samples):
        rng = np.random.default_rng((systems, sample))
        pairs, p_values = [], []
        for task in range(TASKS):
            pairs += list(range(systems))
            p_values += mean_p_values(differences(rng, task, systems), draws=999, seed=sample)
        found = np.array(corrected(pairs, p_values))
        marked = found[:, 0] < 0.05
        counts += (marked[np.array(pairs) == 0].any(), marked.any(), (marked & (found[:, 1] < 0.05)).any())
    first, any_, double = (counts / samples).tolist()
    return first, any_, double


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=500)
    args = parser.parse_args()
    print("| systems | a given system is marked | any is marked | any is marked twice |\n|---|---|---|---|")
    for systems in (1, 3, 10, 30):
        print(f"| {systems} | {' | '.join(f'{share:.3f}' for share in simulate(systems, args.samples))} |", flush=True)


if __name__ == "__main__":
    main()
