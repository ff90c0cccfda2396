"""Mean, standard error and bootstrap of readings that come document by document and are not kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 1000


class Moments:
    """Mean and standard error of arrays of one `shape`, by Welford's recurrence. NaN entries do not count."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = np.zeros(shape, dtype=np.int64)
        self.mean = np.zeros(shape)
        self._squares = np.zeros(shape)

    def add(self, values: Floats) -> None:
        """One more document."""
        there = ~np.isnan(values)
        self.count += there
        step = np.where(there, values - self.mean, 0.0)
        self.mean += step / np.maximum(self.count, 1)
        self._squares += step * np.where(there, values - self.mean, 0.0)

    @property
    def stderr(self) -> Floats:
        """Standard error of the mean; NaN below two documents."""
        count = np.where(self.count < 2, np.nan, self.count)
        return np.asarray(np.sqrt(self._squares / (count - 1) / count))


class Bootstrap:
    """Means of resampled documents, without keeping the documents.

    A resample of N documents holds each of them a number of times that is nearly Poisson distributed with mean 1; drawn
    anew for each document as it comes, these numbers make R running sums (Chamandy et al., 2012, "Estimating
    Uncertainty for Massive Data Streams"). The numbers come from `seed` and the order of the documents.
    """

    def __init__(self, length: int, *, resamples: int = RESAMPLES, seed: int = 0) -> None:
        self._sums = np.zeros((resamples, length))
        self._weights = np.zeros((resamples, 1))
        self._random = np.random.default_rng(seed)

    def add(self, curve: Floats) -> None:
        """One more document's `(length,)` curve."""
        weights = self._random.poisson(1.0, size=(len(self._sums), 1)).astype(np.float64)
        self._sums += weights * curve
        self._weights += weights

    @property
    def means(self) -> Floats:
        """`(R, length)`; a resample without any document is left out."""
        some = self._weights[:, 0] > 0
        return np.asarray(self._sums[some] / self._weights[some])
