"""A task's aggregation, made fast to evaluate on resampled documents.

Most aggregations depend on the documents only through sums: a mean, a perplexity, BLEU with its n-gram counts. For
those, `R` resamples of `N` documents are one product of an `(R, N)` matrix of counts with the `(N, S)` statistics.
Any other callable is evaluated resample by resample.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness.facts import aggregations as harness
from lm_eval_lora_drop.metrics.hotpotqa import mean_of_given

Floats = NDArray[np.float64]

OWN_PACKAGE = "lm_eval_lora_drop."


def _value_and_one(item: Any) -> Sequence[float]:
    return (float(item), 1.0)


def _pair(item: Any) -> Sequence[float]:
    return (float(item[0]), float(item[1]))


def _ratio(totals: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(totals[:, 0] / totals[:, 1])


_ADDITIVE: dict[Any, tuple[Callable[[Any], Sequence[float]], Callable[[Floats], Floats]]] = {
    harness.mean: (_value_and_one, _ratio),
    harness.nanmean: (_value_and_one, _ratio),
    mean_of_given: (_value_and_one, _ratio),
    harness.perplexity: (_value_and_one, lambda totals: np.exp(-_ratio(totals))),
    harness.weighted_perplexity: (_pair, lambda totals: np.exp(-_ratio(totals))),
    harness.bits_per_byte: (_pair, lambda totals: -_ratio(totals) / np.log(2)),
}


def has_value(item: Any) -> bool:
    """Whether a document's item counts in a score: not where it is None, or a judged text without a verdict."""
    return item is not None and not (isinstance(item, list | tuple) and len(item) == 1 and item[0] is None)


@dataclass(frozen=True)
class Aggregation:
    """`function` takes the items of documents to one score.

    An object with `from_totals((R, S) sums) -> (R,) scores`, whose items are lists of `S` numbers, is resampled through
    it. An item None is a document without a value: left out.
    """

    function: Callable[[Sequence[Any]], float]

    @classmethod
    def named(cls, name: str) -> Aggregation:
        """The aggregation that a results file names: one of lm-eval's, or one of this package as `module:attribute`.

        Raises:
            ArgumentError: neither; code named by a file is not imported from anywhere else.
        """
        if name in harness.AGGREGATIONS:
            return cls(harness.AGGREGATIONS[name])
        module, _, attribute = name.partition(":")
        if module.startswith(OWN_PACKAGE) and attribute:
            try:
                return cls(getattr(importlib.import_module(module), attribute))
            except (ImportError, AttributeError):
                pass
        raise ArgumentError(
            f"resampling recorded scores needs an aggregation of lm-eval or of {OWN_PACKAGE[:-1]}, got {name!r}, which "
            "only its task knows."
        )

    @property
    def name(self) -> str:
        """How a results file names the aggregation; `named` reads it back where that is possible."""
        for name, function in harness.AGGREGATIONS.items():
            if function is self.function:
                return str(name)
        # An object's class says where it was made; under which name it stands there, only the module knows. The harness
        # loads a task's own functions without entering their module into sys.modules.
        module = self.function.__module__
        within = vars(sys.modules[module]) if module in sys.modules else {}
        named = (name for name, value in within.items() if value is self.function)
        return f"{module}:{next(named, getattr(self.function, '__name__', type(self.function).__name__))}"

    @property
    def is_mean(self) -> bool:
        """Whether a score is the plain mean of its documents' numbers."""
        return self.function in (harness.mean, harness.nanmean, mean_of_given)

    @property
    def is_additive(self) -> bool:
        """Whether resamples are matrix arithmetic."""
        return hasattr(self.function, "from_totals") or self.function in _ADDITIVE

    def score(self, items: Sequence[Any]) -> float:
        """The score over `items`; NaN where none has a value."""
        scored = [item for item in items if item is not None]
        return float(self.function(scored)) if scored else float("nan")

    def statistics(self, items: Sequence[Any]) -> NDArray[Any] | None:
        """`(N, S)` statistics that add up over documents (zero where an item is None), or None where there are none.

        Counts stay integers: sacrebleu insists.
        """
        if hasattr(self.function, "from_totals"):
            rows: list[Sequence[float] | None] = [None if item is None else tuple(item) for item in items]
        elif self.function in _ADDITIVE:
            row = _ADDITIVE[self.function][0]
            rows = [None if item is None else row(item) for item in items]
        else:
            return None
        width = next((len(row) for row in rows if row is not None), 1)
        return np.array([(0,) * width if row is None else row for row in rows])

    def from_totals(self, totals: NDArray[Any]) -> Floats:
        """`(R, S)` sums of statistics to `(R,)` scores."""
        if hasattr(self.function, "from_totals"):
            return np.asarray(self.function.from_totals(totals), dtype=np.float64)
        return _ADDITIVE[self.function][1](totals)

    def resample(self, items: Sequence[Any], counts: NDArray[np.integer[Any]]) -> Floats:
        """Scores of resamples: `counts` is `(R, N)`, how often each of the `N` documents occurs in each resample."""
        statistics = self.statistics(items)
        if statistics is not None:
            return self.from_totals(counts @ statistics)
        return np.array(
            [self.score([item for item, times in zip(items, row, strict=True) for _ in range(times)]) for row in counts]
        )

    def per_document(self, items: Sequence[Any]) -> Floats:
        """One number per document, `(N,)`, whose mean is the score and whose spread gives its standard error.

        For a mean these are the items. For any other aggregation they are the jackknife's pseudo-values, `N` times the
        score less `N - 1` times the score without the document (Tukey, 1958; Efron & Tibshirani, 1993, An Introduction
        to the Bootstrap, chapter 11): what each document adds to a corpus score. NaN where it has no value.
        """
        if self.is_mean:
            return np.array([np.nan if item is None else float(item) for item in items], dtype=np.float64)
        scored = [index for index, item in enumerate(items) if has_value(item)]
        n = len(scored)
        values = np.full(len(items), np.nan)
        if n >= 2:
            left_out = self.resample([items[index] for index in scored], 1 - np.eye(n, dtype=np.int64))
            values[scored] = n * self.score(items) - (n - 1) * left_out
        return values


def assumed_range(values: Floats) -> float:
    """The largest difference that two scores of one document are taken to have where no range is declared.

    1 where all scores seen lie in 0..1 and 100 where they lie in 0..100: the scales of most metrics. Else twice the
    spread of all that were seen. An assumption: later scores may lie outside.
    """
    seen = values[np.isfinite(values)]
    if not seen.size:
        return 1.0
    low, high = float(seen.min()), float(seen.max())
    for top in (1.0, 100.0):
        if low >= 0.0 and high <= top:
            return top
    return 2.0 * (high - low)
