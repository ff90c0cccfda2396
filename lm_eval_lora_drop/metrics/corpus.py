"""BLEU and chrF of a corpus, with sacrebleu. Each document contributes counts; only their sum makes a score.

An object here is a task's aggregation: `statistics` turns one document into a list of numbers (the item), calling the
object with all items gives the score, and `from_totals` scores many resamples at once from their summed items. Its
`repr`, which the harness writes into the results file, is sacrebleu's signature: every choice that moves the score.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF


class CorpusMetric(ABC):
    """A score, 0 to 100, of summed statistics."""

    metric: Any

    @abstractmethod
    def statistics(self, prediction: str, reference: str) -> list[int]:
        """The counts of one document; their number is the same for all."""

    @abstractmethod
    def score(self, totals: Sequence[int]) -> float:
        """The score of summed counts."""

    def __call__(self, items: Sequence[Sequence[int]]) -> float:
        """The score of a corpus, one item per document."""
        return self.score(np.sum(np.asarray(items, dtype=np.int64), axis=0).tolist())

    def from_totals(self, totals: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Scores of `totals`, shape (resamples, statistics)."""
        return np.array([self.score(row) for row in np.asarray(totals).tolist()], dtype=np.float64)

    def __repr__(self) -> str:
        """Name and signature, e.g. `BLEU nrefs:1|case:mixed|eff:no|tok:zh|smooth:exp|version:2.6.0`."""
        self.metric.corpus_score(["a"], [["a"]])  # the signature knows the number of references only after a score
        return f"{type(self.metric).__name__} {self.metric.get_signature()}"


class Bleu(CorpusMetric):
    """BLEU as the sacrebleu command gives it, with the tokeniser named: its default scores Chinese near 0."""

    def __init__(self, tokenize: str) -> None:
        """`tokenize`: sacrebleu's name, e.g. `zh` or `13a`."""
        self.metric = BLEU(tokenize=tokenize)

    def statistics(self, prediction: str, reference: str) -> list[int]:
        """Length of the prediction, of the reference, then matching and all n-grams, n = 1 to 4 each."""
        score = self.metric.corpus_score([prediction], [[reference]])
        return [score.sys_len, score.ref_len, *score.counts, *score.totals]

    def score(self, totals: Sequence[int]) -> float:
        """BLEU with sacrebleu's default smoothing (`exp`)."""
        sys_len, ref_len, *counts = totals
        half = len(counts) // 2
        correct, total = counts[:half], counts[half:]
        return float(BLEU.compute_bleu(correct, total, sys_len, ref_len, self.metric.smooth_method).score)


class ChrF(CorpusMetric):
    """chrF2: character n-grams up to 6, no words, as the sacrebleu command gives it.

    sacrebleu has no public way to a segment's counts, so two of its private methods are called here, and nowhere else.
    """

    def __init__(self) -> None:
        self.metric = CHRF()

    def statistics(self, prediction: str, reference: str) -> list[int]:
        """Per n-gram order: those of the prediction, of the reference, and matching."""
        return list(self.metric._extract_corpus_statistics([prediction], [[reference]])[0])

    def score(self, totals: Sequence[int]) -> float:
        """chrF of summed counts."""
        return float(self.metric._aggregate_and_compute([list(totals)]).score)


BLEU_ZH = Bleu("zh")
CHRF2 = ChrF()
