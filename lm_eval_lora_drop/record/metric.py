"""A metric of a task, as a sweep optimises it and a results file names it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MetricSpec:
    """One metric of a task, behind one of the task's filters. `range`: between which values a document's score lies,
    None where nobody has declared it."""

    name: str
    filter: str
    higher_is_better: bool
    range: tuple[float, float] | None = None

    @property
    def worst(self) -> float | None:
        """The worst value of a document, signed so that higher is better; None where the range is not known."""
        if self.range is None:
            return None
        return self.range[0] if self.higher_is_better else -self.range[1]

    def better(self, value: float, other: float) -> bool:
        """Whether `value` is strictly better than `other`."""
        return value > other if self.higher_is_better else value < other

    @property
    def sign(self) -> int:
        """1 where higher is better, -1 where lower is."""
        return 1 if self.higher_is_better else -1

    def __str__(self) -> str:
        return self.name if self.filter == "none" else f"{self.name},{self.filter}"
