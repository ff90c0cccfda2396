"""The paired randomisation of corpus metrics where few documents differ: exact p-values, and the level of the test.

    python benchmarks/randomisation_exact.py

First table: k of 50 documents are spoilt and none is improved, so of all 2**k exchanges exactly two are as extreme and
p = 2 / 2**k. Beside it what sacrebleu's own paired test says, which counts strictly larger differences only. Second
table: k of 50 documents differ and for each a coin decides which system said what, which is the null hypothesis;
the share of 2,000 such draws with p < .05. All p-values of the null come from one enumeration by sacrebleu's public
`corpus_score`, so that the benchmark does not share its arithmetic with what it checks.
"""

from __future__ import annotations

import itertools

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.significance import PairedTest

from lm_eval_lora_drop.statistics.corpus import corpus_test
from lm_eval_lora_drop.statistics.significance import mean_test

DOCUMENTS = 50
SAMPLES = 2_000
WORDS = "the cat sat on a mat and saw small birds in old trees by our house near that river".split()  # noqa: SIM905


def texts(rng: np.random.Generator) -> list[str]:
    """Sentences of eight words."""
    return [" ".join(rng.choice(WORDS, 8)) for _ in range(DOCUMENTS)]


def exact_cases() -> None:
    """The first table."""
    print("| k | exact p | ours: BLEU | chrF | TER | mean | sacrebleu: BLEU |\n|---|---|---|---|---|---|---|")
    references = texts(np.random.default_rng(0))
    for k in range(1, 9):
        spoilt = ["x x x x x x x x" if row < k else text for row, text in enumerate(references)]
        ours = [corpus_test(metric, references, spoilt, references).p_value for metric in (BLEU(), CHRF(), TER())]
        lost = np.where(np.arange(DOCUMENTS) < k, 1 / (2 + np.arange(DOCUMENTS)), 0.0)
        ours.append(mean_test(np.ones(DOCUMENTS), 1 - lost).p_value)
        systems = [("one", references), ("two", spoilt)]
        _, scores = PairedTest(systems, {"BLEU": BLEU()}, [references], test_type="ar")()
        theirs = float(scores["BLEU"][1].p_value)  # type: ignore[union-attr]
        print(f"| {k} | {2.0 ** (1 - k):.6g} | {' | '.join(f'{p:.6g}' for p in ours)} | {theirs:.4g} |", flush=True)


def null_p_values(metric: BLEU | CHRF, differing: int, seed: int) -> tuple[list[float], list[float]]:
    """For every assignment of the differing outputs to the two systems: the p-value by brute force, and ours."""
    rng = np.random.default_rng(seed)
    references = texts(rng)
    one = [" ".join([*text.split()[:-1], "x"]) for text in references]
    two = list(one)
    for row in range(differing):
        words = one[row].split()
        words[: 1 + row % 4] = ["y"] * (1 + row % 4)
        two[row] = " ".join(words)

    def sides(swapped: tuple[int, ...]) -> tuple[list[str], list[str]]:
        left, right = list(one), list(two)
        for row in range(differing):
            if swapped[row]:
                left[row], right[row] = right[row], left[row]
        return left, right

    assignments = list(itertools.product((0, 1), repeat=differing))
    differences = []
    for swapped in assignments:
        left, right = (metric.corpus_score(side, [references]).score for side in sides(swapped))
        differences.append(abs(right - left))
    sizes = np.array(differences)
    brute = [float(np.mean(sizes >= size - 1e-7)) for size in sizes]
    checked = range(0, len(assignments), max(1, len(assignments) // 32))
    ours = [corpus_test(metric, *sides(assignments[index]), references).p_value for index in checked]
    worst = max(abs(brute[index] - p) for index, p in zip(checked, ours, strict=True))
    return brute, [worst]


def level() -> None:
    """The second table."""
    print("| metric | differing of 50 | rejected at .05 | of | largest difference of ours to brute force |")
    print("|---|---|---|---|---|")
    for name, metric in (("BLEU", BLEU()), ("chrF", CHRF())):
        for differing in (2, 4, 6, 10):
            brute, (worst,) = null_p_values(metric, differing, differing)
            drawn = np.random.default_rng(differing).choice(brute, SAMPLES)
            print(f"| {name} | {differing} | {np.mean(drawn < 0.05):.4f} | {SAMPLES} | {worst:.1g} |", flush=True)


if __name__ == "__main__":
    exact_cases()
    print()
    level()
