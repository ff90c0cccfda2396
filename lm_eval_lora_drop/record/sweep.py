"""What a sweep found: for the results file, and as a small table for the log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_eval_lora_drop.statistics.paired import Difference
from lm_eval_lora_drop.sweep.metric import MetricSpec


@dataclass(frozen=True)
class Row:
    """One boundary: its score, over how many documents, and how many gave no value of the metric.

    `retired_after` is the number of documents after which racing gave the boundary up; None where it did not.
    """

    boundary: int
    score: float
    stderr: float
    documents: int
    unscored: int = 0
    retired_after: int | None = None


@dataclass(frozen=True)
class SweepResult:
    """The chosen boundary and everything it was chosen from.

    `gain` is the paired difference of the chosen boundary to full over the same documents, None where full was not
    among the candidates or was chosen itself.
    """

    boundary: int
    best: int
    rows: tuple[Row, ...]
    items: Mapping[int, Sequence[Any]]
    metric: MetricSpec
    aggregation: str
    num_layers: int
    strategy: str
    select: str
    seed: int
    gain: Difference | None
    warnings: tuple[str, ...] = ()
    racing: Mapping[str, Any] | None = None

    def row(self, boundary: int) -> Row | None:
        """The row of a boundary, None where it was no candidate."""
        return next((row for row in self.rows if row.boundary == boundary), None)

    def to_json(self) -> dict[str, Any]:
        """The object `sweep` of the results file."""
        full, base = self.row(self.num_layers), self.row(0)
        return {
            "strategy": self.strategy,
            "select": self.select,
            "seed": self.seed,
            "boundaries": [
                {
                    "boundary": row.boundary,
                    "score": plain(row.score),
                    "stderr": plain(row.stderr),
                    "documents": row.documents,
                    "unscored": row.unscored,
                    "retired_after": row.retired_after,
                }
                for row in self.rows
            ],
            "items": {str(row.boundary): [plain(item) for item in self.items[row.boundary]] for row in self.rows},
            "aggregation": self.aggregation,
            "chosen": self.boundary,
            "best": self.best,
            "full_score": full and plain(full.score),
            "base_score": base and plain(base.score),
            "gain_over_full": self.gain
            and {
                "difference": plain(self.gain.value),
                "stderr": plain(self.gain.stderr),
                "documents": self.gain.documents,
            },
            "racing": self.racing,
            "warnings": list(self.warnings),
        }

    def table(self) -> str:
        """A line per boundary, the largest first, and in words what the standard error says about the choice."""
        digits = _digits(self.rows)
        name = str(self.metric)
        width = max(len(name), 10)
        lines = [f"{'K':>4}  {name:>{width}}  {'std. error':>10}  {'documents':>9}"]
        for row in self.rows:
            marks = [
                word
                for word, applies in (
                    ("full", row.boundary == self.num_layers),
                    ("base", row.boundary == 0),
                    ("best", row.boundary == self.best),
                    ("chosen", row.boundary == self.boundary),
                    (f"retired after {row.retired_after}", bool(row.retired_after)),
                    ("retired by the prior", row.retired_after == 0),
                )
                if applies
            ]
            score, stderr = ("-" if math.isnan(value) else f"{value:.{digits}f}" for value in (row.score, row.stderr))
            line = f"{row.boundary:4d}  {score:>{width}}  {stderr:>10}  {row.documents:9d}  {', '.join(marks)}"
            lines.append(line.rstrip())
        return "\n".join([*lines, *self.remarks(digits), *(f"Note: {warning}" for warning in self.warnings)])

    def remarks(self, digits: int = 3) -> list[str]:
        """Sentences about the choice."""
        chosen = self.row(self.boundary)
        assert chosen is not None
        rule = "the best score" if self.select == "best" else "the smallest K within one standard error of the best"
        said = [
            f"Chosen: K = {self.boundary}, {rule} among {len(self.rows)} candidates on {chosen.documents} documents."
        ]
        if self.gain is None:
            if self.boundary == self.num_layers:
                said.append("That is the whole adapter: dropping layers brought nothing on these documents.")
            else:
                said.append(f"K = {self.num_layers} (full) was not among the candidates: nothing is said about a gain.")
            return said
        said.append(self._gain_in_words(self.gain, digits))
        return said

    def _gain_in_words(self, gain: Difference, digits: int) -> str:
        if math.isnan(gain.value):
            return f"It has no document in common with K = {self.num_layers} (full): nothing is said about a gain."
        side = "better" if gain.value > 0 else "worse"
        text = f"It scores {abs(gain.value):.{digits}f} {side} than K = {self.num_layers} (full) on the same documents"
        if gain.value == 0:
            text = f"It scores the same as K = {self.num_layers} (full) on the same documents"
        if math.isnan(gain.stderr):
            return f"{text}; one document says nothing about how sure that is."
        text += f", with a standard error of {gain.stderr:.{digits}f} (paired)"
        if gain.value <= 0:
            return f"{text}."
        if gain.value <= gain.stderr:
            verdict = "the gain is smaller than its standard error, so these documents cannot tell it from none"
        elif gain.value <= 2 * gain.stderr:
            verdict = "the gain is less than two standard errors, so it may well be chance"
        else:
            verdict = "the gain is more than two standard errors"
        also = " K was picked as the best of many on these very documents, which makes a gain look larger than it is:"
        return f"{text}: {verdict}.{also} the test split decides."


def plain(value: Any) -> Any:
    """What JSON can hold: numpy's scalars and arrays as numbers and lists, NaN and infinity as null."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _digits(rows: Sequence[Row]) -> int:
    """Percentages get two digits, shares four."""
    largest = max((abs(row.score) for row in rows if math.isfinite(row.score)), default=0.0)
    return 2 if largest > 1.5 else 4
