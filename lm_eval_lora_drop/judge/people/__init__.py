"""A few documents scored by people, many by a panel: what people would say of all of them.

Prediction-powered inference (PPI++; Angelopoulos, Duchi & Zrnic, arXiv 2311.01453, section 6): the panel's mean over
the documents without a human score, corrected by how far panel and people differ where both scored,

    value = mean(y - t f) + t mean(f'),   t = cov(y, f) / ((1 + n / N) var(f))

with `y` people's and `f` the panel's scores of the same `n` documents and `f'` the panel's of `N` others. A panel that
follows people narrows the interval; one that says nothing of them gets t = 0, which leaves people alone. The documents
that people scored must be drawn at random. ppi-python is not used: it brings scikit-learn, pandas and a compiler for
these few lines. With few documents Student's t with n - 2 degrees of freedom takes the place of the normal quantile,
since t is estimated too; coverage: `python benchmarks/coverage_judges.py`.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import read_text

Floats = NDArray[np.float64]
FEWEST = 5
"""Human scores below which there is no interval."""


@dataclass(frozen=True)
class PoweredMean:
    """A mean as people would give it, its 95 % interval, and that of the human scores alone; `tuning` is t.

    The intervals are NaN where all human scores are equal: they do not show how much they vary.
    """

    value: float
    interval: tuple[float, float]
    people_alone: tuple[float, float]
    tuning: float
    by_people: int
    by_judges_alone: int


def powered_mean(
    human: Floats, judged: Floats, others: Floats, level: float = 0.05, weights: Floats | None = None
) -> PoweredMean:
    """The mean over all documents of what people score.

    Args:
        human, judged: `(n,)`, people's and the panel's scores of the same documents (or paired differences).
        others: `(N,)`, the panel's scores of the documents that no person scored.
        level: the interval is to miss in this share of samples.
        weights: `(n,)`, 1 for a document, less for a part of one that is assumed.

    Raises:
        ArgumentError: fewer than `FEWEST` human scores.
    """
    from scipy.stats import t as student

    weights = np.ones(len(human)) if weights is None else weights
    n, more, real = float(weights.sum()), len(others), int((weights == 1).sum())
    if real < FEWEST:
        raise ArgumentError(f"people must have scored at least {FEWEST} of the documents for an interval; got {real}.")

    def covariance(one: Floats, two: Floats) -> float:
        return float(np.cov(one, two, aweights=weights, ddof=0)[0, 1]) * n / (n - 1)

    spread = float(np.var(np.concatenate([judged[weights == 1], others]), ddof=1))
    tuning = covariance(human, judged) / ((1 + n / more) * spread) if more and spread > 0 else 0.0
    tuning = min(1.0, max(0.0, tuning))
    rest = human - tuning * judged
    value = float(np.average(rest, weights=weights)) + (tuning * float(others.mean()) if more else 0.0)
    of_people = covariance(rest, rest) * (n - 1) / ((n - 2) * n)
    of_judges = tuning**2 * spread / more if more else 0.0
    half = float(student.ppf(1 - level / 2, n - 2)) * math.sqrt(of_people + of_judges)
    alone = float(student.ppf(1 - level / 2, n - 1)) * math.sqrt(covariance(human, human) / n)
    mean = float(np.average(human, weights=weights))
    if np.ptp(human) == 0:
        half = alone = math.nan
    return PoweredMean(value, (value - half, value + half), (mean - alone, mean + alone), tuning, real, more)


def powered_share(human: Floats, judged: Floats, others: Floats) -> PoweredMean:
    """`powered_mean` of preferences in percent: 100 for the first system, 0 for the second, 50 for a tie.

    One pair is assumed beside the real ones, a quarter of it in each cell of (people, panel), as Agresti & Min (2005,
    Statistics in Medicine 24, 729-740) do for matched proportions: otherwise ten wins of ten would have no uncertainty,
    and a panel that agreed with people on ten pairs would be infallible. Raises ArgumentError as `powered_mean` does.
    """
    cells = np.array([[0.0, 0.0, 100.0, 100.0], [0.0, 100.0, 0.0, 100.0]])
    weights = np.append(np.ones(len(human)), np.full(4, 0.25))
    found = powered_mean(np.append(human, cells[0]), np.append(judged, cells[1]), others, weights=weights)
    (low, high), (least, most) = (np.clip(ends, 0.0, 100.0).tolist() for ends in (found.interval, found.people_alone))
    return replace(found, interval=(low, high), people_alone=(least, most))


def filled(scores: Floats) -> Floats:
    """The panel's mean of each document, of `(judges, documents)` scores with NaN where a judge gave none.

    A judge's missing score becomes its mean. A judge that fails on bad texts would otherwise take these documents out
    of the human scores as well, and the mean would be that of the good ones. The interval stays valid: it holds for any
    panel score that is not made from the human ones.
    """
    known = ~np.isnan(scores)
    means = np.where(known, scores, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return np.asarray(np.where(known, scores, means[:, None]).mean(axis=0), dtype=np.float64)


def read_people(path: Path, scale: tuple[float, float] | None = None) -> dict[str, dict[int, float]]:
    """Human scores of a CSV file in percent of `scale`: per column beside `doc_id` (a criterion, or `score`), by
    document.

    Several rows of one document are several raters, of whom the mean counts; an empty cell is no score. Without a scale
    the scores are percent, and a column that nowhere exceeds 10 is rejected: it is more likely one of 0 to 10.

    Raises:
        ArgumentError: no column doc_id, no other column, a value that is no number or not on the scale, or no scale
            where it is unclear.
    """
    rows = csv.DictReader(io.StringIO(read_text(path, "human scores, CSV with doc_id and scores"), newline=""))
    if "doc_id" not in (rows.fieldnames or ()) or len(rows.fieldnames or ()) < 2:
        raise ArgumentError(f"{path} must have the column doc_id and a column for each criterion, e.g. doc_id,score.")
    low, high = scale or (0.0, 100.0)
    if not low < high:
        raise ArgumentError(f"--scale must be the lowest and the highest score, e.g. 0 10; got {low:g} {high:g}.")
    found: dict[str, dict[int, list[float]]] = {}
    for line, row in enumerate(rows, start=2):
        for name, text in row.items():
            if name in ("doc_id", "rater", None) or not (text or "").strip():
                continue
            try:
                document, value = int(row["doc_id"]), float(text)
            except (TypeError, ValueError):
                raise ArgumentError(f"{path}, row {line}, {name}: must be a number, got {str(text)[:40]!r}.") from None
            if not low <= value <= high:
                raise ArgumentError(
                    f"{path}, row {line}, {name}: must be from {low:g} to {high:g}, got {str(text)[:40]!r}. Name "
                    "another scale: --scale LOW HIGH."
                )
            found.setdefault(str(name), {}).setdefault(document, []).append(value)
    for name, of in found.items():
        if scale is None and max(max(some) for some in of.values()) <= 10:
            raise ArgumentError(
                f"{path}: no score of {name} is above 10, so it is not clear that they are percent. Name the scale: "
                "--scale 0 10, or --scale 0 100 for percent."
            )
    return {
        name: {document: 100 * (sum(some) / len(some) - low) / (high - low) for document, some in of.items()}
        for name, of in found.items()
    }


def correlation(human: Floats, judged: Floats) -> float:
    """Spearman's rank correlation of a judge with people, over what it scored; NaN where either never varies."""
    from scipy.stats import spearmanr

    both = ~np.isnan(judged)
    human, judged = human[both], judged[both]
    if len(human) < 3 or np.ptp(human) == 0 or np.ptp(judged) == 0:
        return math.nan
    return float(spearmanr(human, judged).statistic)


def next_documents(scores: Floats, doc_ids: Sequence[int], done: Collection[int], number: int) -> list[int]:
    """The documents of `scores`, `(judges, documents)`, on which judges differ most and that no person has scored.

    For reading and for criteria: an interval needs documents drawn at random, so these are not to be added to them.
    """
    spread = np.nan_to_num(np.ptp(scores, axis=0))  # NaN where a judge gave no score
    order = [int(place) for place in np.argsort(-spread, kind="stable") if spread[place] > 0]
    return [doc_ids[place] for place in order if doc_ids[place] not in done][:number]
