"""Documents that belong together: rows of one dialogue, questions on one passage.

Such documents are not independent, so standard errors, tests and resamples must take whole clusters. A task names the
field that its documents share in its metadata:

    metadata:
      version: 1.0
      cluster: passage

The harness copies the metadata into the results file (`configs.<task>.metadata`), where the commands that read results
find it; a sweep reads it from the task itself. For a task of somebody else `--metadata '{"cluster": "passage"}'` does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_lora_drop.errors import ArgumentError

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
"""`(documents,)`, equal where two documents belong together: 0, 1, ... in the order in which the clusters appear."""


def cluster_field(metadata: Any) -> str | None:
    """The document field that a task's metadata names as `cluster`, None where documents stand alone.

    Raises:
        ArgumentError: it is not a field's name.
    """
    name = metadata.get("cluster") if isinstance(metadata, Mapping) else None
    if name is not None and (not isinstance(name, str) or not name):
        raise ArgumentError(f"metadata: cluster must be the name of one field of the documents, got {name!r}.")
    return name


def cluster_key(doc: Any, field: str) -> str:
    """What `doc` belongs to: the content of its `field`, or a digest where that is neither text nor a number.

    Raises:
        ArgumentError: the document has no such field, or nothing in it.
    """
    value = doc.get(field) if isinstance(doc, Mapping) else None
    if value is None:
        fields = ", ".join(map(str, doc)) if isinstance(doc, Mapping) else "none"
        raise ArgumentError(
            f"the task's metadata says cluster: {field}, which this document does not have. Its fields: {fields}."
        )
    if isinstance(value, str | int):
        return str(value)
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def cluster_codes(keys: Sequence[str | None]) -> Codes:
    """Numbers for keys; a document whose key is None is a cluster of its own."""
    numbers: dict[Any, int] = {}
    named = [(position,) if key is None else key for position, key in enumerate(keys)]
    return np.array([numbers.setdefault(key, len(numbers)) for key in named], dtype=np.int64)


def codes_at(codes: Codes, positions: Sequence[int]) -> Codes:
    """The codes of some of the documents, numbered anew without gaps."""
    return np.asarray(np.unique(codes[np.asarray(positions, dtype=np.int64)], return_inverse=True)[1], dtype=np.int64)


def cluster_sums(values: NDArray[Any], codes: Codes) -> NDArray[Any]:
    """Sums over the documents of each cluster: `(documents, ...)` to `(clusters, ...)`."""
    count = int(codes.max()) + 1 if len(codes) else 0
    sums = np.zeros((count, *values.shape[1:]), dtype=values.dtype)
    np.add.at(sums, codes, values)
    return sums


def mean_stderr(values: Floats, codes: Codes) -> float:
    """Standard error of the mean of `values`, `(documents,)`, where clusters and not documents are independent.

    The sandwich estimate with the factor C / (C - 1) for C clusters, as statsmodels' `cov_type="cluster"` gives it for
    an intercept (Liang & Zeger, 1986; for evaluations: Miller, 2024, arXiv 2411.00640). Clusters of one document each
    give the ordinary standard error; a single cluster says nothing, NaN.
    """
    sums = cluster_sums(values - values.mean(), codes)
    if len(sums) < 2:
        return float("nan")
    return float(np.sqrt(len(sums) / (len(sums) - 1) * np.square(sums).sum()) / len(values))


def draw_cluster_counts(codes: Codes, resamples: int, seed: int) -> NDArray[np.int64]:
    """Bootstrap of clusters: `(resamples, documents)`, how often each document occurs; those of a cluster alike."""
    clusters = int(codes.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples)
    return np.asarray(drawn[:, codes])


def draw_cluster_subsets(codes: Codes, documents: int, repeats: int, seed: int) -> NDArray[np.int64]:
    """Random subsets, `(repeats, documents)` of 0 and 1: whole clusters in random order, until they hold at least
    `documents` documents (exactly that number if each is a cluster of its own)."""
    sizes = np.bincount(codes)
    order = np.random.default_rng(seed).random((repeats, len(sizes))).argsort(axis=1)
    before = np.cumsum(sizes[order], axis=1) - sizes[order]
    taken = np.zeros(order.shape, dtype=np.int64)
    np.put_along_axis(taken, order, (before < documents).astype(np.int64), axis=1)
    return np.asarray(taken[:, codes])
