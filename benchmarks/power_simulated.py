"""Is the minimum detectable difference that `lora-drop plan` states detected in 80 % of samples?

    python benchmarks/power_simulated.py [--samples 2000]

For each kind of metric and number of documents: the stated difference, the share of samples with p < .05 by the test of
`lora-drop compare` (nominal .800) when that is the true difference, and when the true difference is zero.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from lm_eval_lora_drop.statistics.power import PairedVariation, detectable_difference
from lm_eval_lora_drop.statistics.significance import mean_p_values

Draw = Callable[[np.random.Generator, int, int, float], np.ndarray]


def zero_one(discordance: float) -> Draw:
    """A share `discordance` of the documents changes; gains outweigh losses by the difference."""

    def draw(rng: np.random.Generator, documents: int, samples: int, difference: float) -> np.ndarray:
        share = max(discordance, difference)
        u, gained = rng.random((documents, samples)), (share + difference) / 2
        return (u < gained).astype(float) - ((u >= gained) & (u < share))

    return draw


def shifted(noise: Callable[[np.random.Generator, tuple[int, int]], np.ndarray]) -> Draw:
    """Noise of mean 0 and standard deviation 1, moved by the difference."""

    def draw(rng: np.random.Generator, documents: int, samples: int, difference: float) -> np.ndarray:
        return noise(rng, (documents, samples)) + difference

    return draw


CASES: dict[str, tuple[PairedVariation, Draw]] = {
    **{f"0/1, {d:.0%} discordant": (PairedVariation.of_share(d), zero_one(d)) for d in (0.05, 0.1, 0.3)},
    "normal": (PairedVariation.of_spread(1.0), shifted(lambda rng, shape: rng.normal(0, 1, shape))),
    "heavy tails (Laplace)": (
        PairedVariation.of_spread(1.0),
        shifted(lambda rng, shape: rng.laplace(0, 0.5**0.5, shape)),
    ),
    "skewed (exponential)": (PairedVariation.of_spread(1.0), shifted(lambda rng, shape: rng.exponential(1, shape) - 1)),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000)
    args = parser.parse_args()
    print(
        "| differences | documents | stated difference | shown in | shown where there is none |\n|---|---|---|---|---|"
    )
    for name, (known, draw) in CASES.items():
        for documents in (20, 50, 100, 200, 1000):
            stated = detectable_difference(documents, known)
            if stated is None:
                print(f"| {name} | {documents} | none | | |", flush=True)
                continue
            rng = np.random.default_rng(documents)
            shown, false = (
                float(np.mean(np.array(mean_p_values(draw(rng, documents, args.samples, d), draws=499)) < 0.05))
                for d in (stated, 0.0)
            )
            print(f"| {name} | {documents} | {stated:.3g} | {shown:.3f} | {false:.3f} |", flush=True)


if __name__ == "__main__":
    main()
