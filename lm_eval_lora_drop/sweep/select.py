"""Which candidate is taken, once every one has met every document: one rule for the sweep, for its resamples and for
what a results file holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.statistics.aggregation import Aggregation, Floats, has_value
from lm_eval_lora_drop.statistics.clusters import Codes, cluster_codes, cluster_sums, codes_at
from lm_eval_lora_drop.variant import Keep, Variant

BANDWIDTH = 1.0
"""Standard deviation of the smoothing kernel, in layers; docs/evidence/simulations.md has the simulation."""

_TIE = 1e-9
"""Scores of the same documents added in another order differ in their last bits; a tie must count as a tie."""


@dataclass(frozen=True)
class Choice:
    """Rows of the candidates: the one that is chosen, and the one of the best score (smoothed where the rule
    smooths)."""

    chosen: int
    best: int


def selection(select: str | None, strategy: str, *, ordered: bool) -> str:
    """The rule in force; None stands for the default: `smooth` where the candidates are ordered, else `best`.

    Racing promises something about the best score alone: with it the rule is `best`. Refine asks around the best, so
    that it knows nothing of the smallest within a bound.

    Raises:
        ArgumentError: another rule was asked of a race or of refine, or refine of candidates without an order.
    """
    if strategy == "refine" and not ordered:
        raise ArgumentError(
            "sweep_strategy=refine compares every fourth candidate, then those around the best, so neighbours must be "
            "alike as they are in boundary, upper or strength, and these candidates have no such order. Leave "
            "sweep_strategy out, or take sweep_strategy=racing."
        )
    if strategy == "refine" and select not in (None, "best", "smooth"):
        raise ArgumentError(
            f"sweep_select must be best or smooth with sweep_strategy=refine, got {select}: refine does not ask the "
            "smaller candidates that this rule compares. Leave sweep_select out, or take sweep_strategy=exhaustive."
        )
    if strategy == "racing":
        if select not in (None, "best"):
            raise ArgumentError(
                f"sweep_select must be best with sweep_strategy=racing, got {select}: racing eliminates "
                "candidates that this rule compares. Leave sweep_select out, or take sweep_strategy=exhaustive."
            )
        return "best"
    return select or ("smooth" if ordered else "best")


def places_of(candidates: Sequence[Variant]) -> list[float]:
    """Where each candidate stands among its neighbours: K for boundaries, the number of layers for the upper ones,
    eighths (the step of that set) for strengths of the full adapter, else its row."""
    for place in (lambda variant: variant.boundary, _upper, _eighths):
        known = [found for variant in candidates if (found := place(variant)) is not None]
        if len(known) == len(candidates):
            return known
    return list(range(len(candidates)))


def _upper(variant: Variant) -> int | None:
    size, end = len(variant.kept_layers), variant.num_layers
    return size if variant.is_plain and variant.kept_layers == frozenset(range(end - size, end)) else None


def _eighths(variant: Variant) -> float | None:
    kinds = set(variant.layers)
    if kinds == {()}:
        return 0.0
    (keeps,) = kinds if len(kinds) == 1 else ((),)
    return keeps[0].strength * 8 if len(keeps) == 1 and keeps[0] == Keep(strength=keeps[0].strength) else None


def choose(
    select: str,
    rows: Sequence[Sequence[Any]],
    aggregation: Aggregation,
    sign: int,
    *,
    ordered: bool,
    places: Sequence[float] | None = None,
    clusters: Codes | None = None,
    worst: float | None = None,
) -> Choice:
    """Choose by the rule `select` among candidates that met the same documents.

    - `best`: the best score.
    - `one_se`: the last candidate that is not worse than the best by more than one standard error of their *paired*
      difference: the rule of Breiman et al. (1984, Classification and Regression Trees, section 3.4.3), with the
      error of what it compares.
    - `smooth`, `smooth_one_se`: the same two on scores smoothed over the candidates' places by local linear regression
      with a Gaussian kernel (Fan & Gijbels, 1996, Local Polynomial Modelling). Only where neighbours are alike
      (`ordered`); else they are `best` and `one_se`.

    Where scores tie, the candidate that stands first is the best. Candidates without a score are not chosen.

    Args:
        rows: `(candidates, documents)` items, from the most kept to the least; None where a document has no value.
        sign: 1 where higher is better, -1 where lower is.
        places: where each candidate stands, in layers (for a boundary its K); default: its row.
        clusters: `(documents,)`, which documents belong together; the paired error is then by cluster.
        worst: as `on_common_documents` takes it.

    Raises:
        ArgumentError: no candidate has a score.
    """
    documents = len(rows[0])
    counts: NDArray[np.integer[Any]] = np.ones((1, documents), dtype=np.int64)
    scores = sign * np.array([[aggregation.score(row) for row in rows]])
    if not np.isfinite(scores).any():
        raise ArgumentError(
            "sweep_metric must have a value for some validation document, and the task gave none of it: no candidate "
            "has a score. Choose another metric."
        )
    # What each document contributes costs a slow aggregation a call a document.
    values = (
        contributions(rows, aggregation, sign) if reads_documents(select, rows) else np.zeros((len(rows), documents))
    )
    values, scores, counts, clusters = on_common_documents(rows, values, scores, counts, clusters, worst)
    chosen, best = choose_rows(select, values, scores, counts, ordered=ordered, places=places, clusters=clusters)
    return Choice(int(chosen[0]), int(best[0]))


def reads_documents(select: str, rows: Sequence[Sequence[Any]]) -> bool:
    """Whether a choice needs more than scores: a paired rule does, and candidates scored on different documents."""
    if select.endswith("one_se"):
        return True
    return len({tuple(map(has_value, row)) for row in rows}) > 1


def contributions(rows: Sequence[Sequence[Any]], aggregation: Aggregation, sign: int) -> Floats:
    """`(candidates, documents)`: what each document contributes to each score, higher is better; NaN where a document
    has no value."""
    return sign * np.array([aggregation.per_document(row) for row in rows])


def on_common_documents(
    rows: Sequence[Sequence[Any]],
    values: Floats,
    scores: Floats,
    counts: NDArray[np.integer[Any]],
    clusters: Codes | None = None,
    worst: float | None = None,
) -> tuple[Floats, Floats, NDArray[np.integer[Any]], Codes | None]:
    """Values, scores, counts and clusters as `choose_rows` takes them, where documents lack a value.

    A candidate must not be preferred for the documents that it has no value on: where another candidate has one, its
    own counts as `worst`, the worst that the metric allows (higher is better); where that is not known, as far below
    the worst value of all candidates as the best one is above it. Documents that nobody has a value on are left out.
    """
    there = np.array([[has_value(item) for item in row] for row in rows])
    read = there.any(axis=0)
    if not (there != read).any() and read.all():
        return values, scores, counts, clusters
    values, counts, there = values[:, read], counts[:, read], there[:, read]
    if clusters is not None:
        clusters = codes_at(clusters, np.flatnonzero(read).tolist())
    if there.all():
        return values, scores, counts, clusters
    known = np.isfinite(values) & there
    if worst is None:
        worst = float(2 * values[known].min() - values[known].max())
    lacking, found = counts @ (~there).T, counts @ there.T
    share = lacking / np.maximum(lacking + found, 1)
    return (
        np.where(known, values, worst),
        scores - np.where(lacking > 0, share * (scores - worst), 0.0),
        counts,
        clusters,
    )


def choose_rows(
    select: str,
    values: Floats,
    scores: Floats,
    counts: NDArray[np.integer[Any]],
    *,
    ordered: bool,
    places: Sequence[float] | None = None,
    clusters: Codes | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`choose` on `R` resamples of the documents: the chosen row and the best row of each, `(R,)`.

    Args:
        values: `(candidates, documents)`, higher is better, what each document contributes (`on_common_documents`).
        scores: `(R, candidates)` of the resamples, higher is better.
        counts: `(R, documents)`, how often each document occurs in each resample; those of a cluster alike.
    """
    resamples = np.arange(len(scores))
    scored = np.isfinite(scores)
    if ordered and select.startswith("smooth"):
        # A resample without a score borrows the mean of the others: its neighbours' smoothed scores need a number.
        able = scored.any(axis=0)
        means = np.array(
            [column[ok].mean() if ok.any() else 0.0 for column, ok in zip(scores.T, scored.T, strict=True)]
        )
        spots = np.arange(len(values), dtype=np.float64) if places is None else np.asarray(places, dtype=np.float64)
        smoother = np.eye(len(values))
        smoother[np.ix_(able, able)] = local_linear(spots[able])
        scores = np.where(scored, scores, means) @ smoother.T
        values = smoother @ values
    comparable = np.where(scored, scores, -np.inf)
    best = first_best(comparable)
    if not select.endswith("one_se"):
        return best, best
    lost = comparable[resamples, best][:, None] - comparable
    within = scored & (lost <= _paired_errors(values, counts, best, clusters) + slack(comparable))
    return values.shape[0] - 1 - within[:, ::-1].argmax(axis=1), best


def slack(scores: Floats) -> Floats:
    """`(R, 1)`: how far scores of `(R, B)` may lie apart and tie; those that are not finite do not count."""
    return np.asarray(_TIE * np.maximum(1.0, np.abs(np.where(np.isfinite(scores), scores, 0.0)).max(axis=1))[:, None])


def first_best(scores: Floats) -> NDArray[np.int64]:
    """`(R,)` of `(R, B)` scores, higher is better: the row that stands first among those that tie for the best; -inf
    takes one out."""
    return (scores >= scores.max(axis=1, keepdims=True) - slack(scores)).argmax(axis=1)


def local_linear(places: Floats, bandwidth: float = BANDWIDTH) -> Floats:
    """The `(B, B)` matrix that takes scores at `places` to the values there of lines fitted around each, weighted by a
    Gaussian kernel; the identity where candidates lie far apart."""
    away = places[None, :] - places[:, None]
    weights = np.exp(-0.5 * (away / bandwidth) ** 2)
    s0, s1, s2 = ((weights * away**power).sum(axis=1, keepdims=True) for power in (0, 1, 2))
    determinant = s0 * s2 - s1**2
    # Too far from any other for a line: the score itself.
    lone = determinant <= 1e-12 * s0**2
    fitted = weights * (s2 - s1 * away) / np.where(lone, 1.0, determinant)
    return np.asarray(np.where(lone, np.eye(len(places)), fitted))


def _paired_errors(
    values: Floats, counts: NDArray[np.integer[Any]], best: NDArray[np.int64], clusters: Codes | None
) -> Floats:
    """`(R, B)` standard errors of each candidate's difference to the resample's best, over the same documents: the
    sandwich estimate over clusters (`statistics.clusters.mean_stderr`), the ordinary one where each is one document."""
    codes = cluster_codes([None] * values.shape[1]) if clusters is None else clusters
    weights = np.bincount(codes).astype(np.float64)
    times = np.zeros((len(counts), len(weights)))
    times[:, codes] = counts  # all documents of a cluster have the same
    # A common level cancels in differences; taking it off first keeps their squares exact.
    level = cluster_sums((values - values.mean(axis=0)).T, codes).T  # (B, C)
    rival = level[best]  # (R, C)
    # With d a cluster's sum of differences and w its documents: sum of (d - mean w) ** 2, multiplied out.
    documents, drawn = times @ weights[:, None], times.sum(axis=1, keepdims=True)
    mean = (times @ level.T - (times * rival).sum(axis=1, keepdims=True)) / documents
    squares = times @ (level**2).T + (times * rival**2).sum(axis=1, keepdims=True) - 2 * (times * rival) @ level.T
    crossed = (times * weights) @ level.T - (times * weights * rival).sum(axis=1, keepdims=True)
    residual = np.maximum(squares - 2 * mean * crossed + mean**2 * (times @ (weights**2)[:, None]), 0.0)
    return np.asarray(np.sqrt(drawn / np.maximum(drawn - 1, 1) * residual) / documents)
