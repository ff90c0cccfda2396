"""One choice under what is traded: the smallest candidate, or the best one, among those that keep a share of a score.

    smallest:BOUND+...   the fewest kept parameters of the adapter; of equally small ones the best optimised score
    smallest_confident:BOUND+...   the same, where the lower confidence limit of the score is within the bound
    best:BOUND+...       the best optimised score
    BOUND                SHARE[@TASK][:base]

A bound holds where the score on the task (without @TASK: the optimised one) is not worse than that of the full adapter
(`:base`: of the base model) by more than 1 - SHARE times the latter's size. So one notation serves metrics of either
direction and either sign, and whatever a bound is held against keeps it: 0.99 of an accuracy of 0.80 is 0.792, of an
error rate of 0.20 it is 0.202, of a log-likelihood of -1.5 it is -1.515.

`smallest` and `best` take scores as they stand (point estimates, never smoothed), so the choice may break its bound on
new documents; `BoundRecord.lower` says by how much. `smallest_confident` adds to each score the distance to its lower
limit: that of the paired difference to the reference, from the intervals of `compare` for all candidates together, less
what the reference's own score leaves open. Unless the documents show the bound, full is kept.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.plain import plain
from lm_eval_lora_drop.record.schema import AlsoRecord, BoundRecord, CandidateRecord, SweepRecord
from lm_eval_lora_drop.statistics.aggregation import Aggregation, Floats
from lm_eval_lora_drop.statistics.clusters import Codes, cluster_codes, codes_at
from lm_eval_lora_drop.statistics.significance import mean_test, mean_tests
from lm_eval_lora_drop.sweep.run import choose_anew, difference
from lm_eval_lora_drop.sweep.score import Scorer
from lm_eval_lora_drop.sweep.select import contributions, first_best, slack
from lm_eval_lora_drop.variant import Variant

GOALS = ("smallest", "smallest_confident", "best")
NOTATION = (
    "smallest:SHARE, smallest_confident:SHARE, smallest:SHARE@TASK or best:SHARE@TASK, several bounds joined by '+'"
)
_SHARE = re.compile(r"0?\.[0-9]{1,6}|1(\.0{0,6})?")

Reference = Literal["full", "base"]


@dataclass(frozen=True)
class Bound:
    """A share in (0, 1] of the score of the full adapter (`full`) or the base model on a task; None: the optimised
    one."""

    share: float
    task: str | None = None
    of: Reference = "full"

    def __str__(self) -> str:
        task = "" if self.task is None else f"@{self.task}"
        return f"{self.share:g}{task}{':base' if self.of == 'base' else ''}"

    def limit(self, reference: Floats) -> Floats:
        """The worst score that is within the bound; `reference` and it are such that higher is better."""
        return np.asarray(reference - (1 - self.share) * np.abs(reference))

    def holds(self, scores: Floats, reference: Floats) -> NDArray[np.bool_]:
        """`(R, B)`: whether `scores` are within the bound of `reference`, `(R, 1)`; not where one of both is NaN."""
        limit = self.limit(reference)
        return np.asarray(scores >= limit - slack(limit))


@dataclass(frozen=True)
class BoundedRule:
    """A rule of choice with bounds; `goal` is one of `GOALS`."""

    goal: str
    bounds: tuple[Bound, ...]

    def __str__(self) -> str:
        return f"{self.goal}:{'+'.join(map(str, self.bounds))}"

    def named(self, names: Mapping[str, str]) -> BoundedRule:
        """The same with the tasks called by their own names: a user may have named a file."""
        return replace(
            self, bounds=tuple(replace(one, task=names[one.task]) if one.task else one for one in self.bounds)
        )


def parse_bounded(text: str) -> BoundedRule | None:
    """The rule that `text` is; None where it is one without bounds.

    Raises:
        ArgumentError: bounds that are none, or one named twice.
    """
    goal, colon, rest = text.partition(":")
    if goal not in GOALS or (goal == "best" and not colon):
        return None
    bounds = []
    for part in rest.split("+"):
        plain = part.strip().removesuffix(":base")
        share, at, task = (piece.strip() for piece in plain.partition("@"))
        if not _SHARE.fullmatch(share) or not float(share) > 0 or (at and not task):
            raise ArgumentError(
                f"sweep_select={text[:200]}: a bound must be SHARE, SHARE@TASK or either with :base behind it, SHARE "
                f"above 0 and at most 1, got {part.strip()[:80]!r}. Write {NOTATION}."
            )
        bounds.append(Bound(float(share), task or None, "base" if plain != part.strip() else "full"))
    held = [(one.task, one.of) for one in bounds]
    if len(set(held)) < len(held):
        raise ArgumentError(f"sweep_select={text[:200]} must bound every score once. Leave the weaker bound out.")
    if goal == "best" and any(one.task is None for one in bounds):
        raise ArgumentError(
            f"sweep_select={text[:200]}: a bound on the optimised score changes nothing about the best of it. Name "
            "another task (best:SHARE@TASK), or ask for the smallest candidate (smallest:SHARE)."
        )
    return BoundedRule(goal, tuple(bounds))


def check_bounds(rule: BoundedRule, also: Sequence[str], candidates: Sequence[Variant]) -> None:
    """Refuse what cannot be judged, before a model is loaded. `also` are the tasks as `sweep_also` names them.

    Raises:
        ArgumentError: a task that is not scored, or no full adapter (or base model) to hold candidates against.
    """
    for bound in rule.bounds:
        if bound.task is not None and bound.task not in also:
            there = f"which names {', '.join(also)}" if also else "which was not given"
            raise ArgumentError(
                f"sweep_select={rule}: a bound must be on a task that sweep_also scores ({there}), got {bound.task!r}. "
                "Name it in both."
            )
    # The full adapter is also what is taken where nothing fits.
    need: set[str] = {"full", *(bound.of for bound in rule.bounds)}
    found = {name for one in candidates for name, is_so in (("full", one.is_full), ("base", one.is_base)) if is_so}
    if lacking := sorted(need - found):
        raise ArgumentError(
            f"sweep_select={rule} holds candidates against {' and '.join(sorted(need))}, got no "
            f"{' and '.join(lacking)} among them. Add K = L (full) and K = 0 (base) to sweep_boundaries."
        )


@dataclass(frozen=True, eq=False)
class BoundedCriterion:
    """A rule with what it needs besides the optimised scores: `kept` parameters and `others`, task -> scores such that
    higher is better, of each candidate, `(B,)`; `rows` of full and base among the candidates. `reach` is how far below
    its score each candidate's lower limit lies, by bound, `(B,)`, NaN where that cannot be said."""

    rule: BoundedRule
    kept: Floats
    others: Mapping[str, Floats]
    rows: Mapping[str, int]
    reach: Callable[[Bound], Floats]

    @classmethod
    def of(
        cls,
        rule: BoundedRule,
        sweep: SweepRecord,
        also: Sequence[AlsoRecord],
        parameters: Mapping[str, int],
        layers: int,
        *,
        sign: int = 1,
        clusters: Codes | None = None,
    ) -> BoundedCriterion:
        """From what a task's record holds, of the sweep's candidates in their order; `sign` and `clusters` are those of
        the sweep's own metric and documents.

        Raises:
            ArgumentError: the record lacks a task, a candidate or its parameters.
        """
        names = [row.variant for row in sweep.candidates]
        variants = [Variant.parse(name, layers) for name in names]
        others = {}
        for one in also:
            most = max(row.documents for row in one.candidates)
            # A score on fewer documents cannot stand beside the others.
            scores = {row.variant: row.score for row in one.candidates if row.documents == most}
            others[one.task] = one.metric.sign * floats([scores.get(name) for name in names])
        rows: dict[str, int] = {}
        for row, variant in enumerate(variants):
            for kind, is_so in (("full", variant.is_full), ("base", variant.is_base)):
                if is_so:
                    rows.setdefault(kind, row)  # of several adapters the first
        lacking = [str(bound) for bound in rule.bounds if bound.task not in {None, *others} or bound.of not in rows]
        if lacking or not set(names) <= set(parameters) or "full" not in rows:
            raise ArgumentError(
                f"the record of a choice by {rule} must hold every candidate's parameters and its scores on every "
                f"bounded task, and lacks some ({', '.join(lacking) or 'candidate_parameters'}). The file is damaged "
                "or was edited; evaluate again."
            )

        @functools.cache  # only what is asked: it takes a test of all candidates
        def reach(bound: Bound) -> Floats:
            on = next((one for one in also if one.task == bound.task), None)
            held = sweep.candidates if on is None else on.candidates
            items = {row.variant: row.items for row in held}
            return _reach(
                bound,
                [items.get(name, ()) for name in names],
                (sweep if on is None else on).aggregation,
                sign if on is None else on.metric.sign,
                rows[bound.of],
                clusters if on is None else cluster_codes(on.validation.clusters or [None] * len(held[0].items)),
            )

        kept = np.array([parameters[name] for name in names], dtype=np.float64)
        return cls(rule, kept, others, rows, reach)

    def met(self, scores: Floats) -> NDArray[np.bool_]:
        """`(R, B)`: which candidates are within all bounds, from `(R, B)` optimised scores, higher is better."""
        found = np.ones(scores.shape, dtype=bool)
        for bound in self.rule.bounds:
            held = scores if bound.task is None else np.broadcast_to(self.others[bound.task], scores.shape)
            reference = held[:, self.rows[bound.of], None]
            found &= bound.holds(
                held + self.reach(bound) if self.rule.goal == "smallest_confident" else held, reference
            )
        return found & np.isfinite(scores)

    def choose(self, scores: Floats) -> NDArray[np.int64]:
        """`(R,)` rows by the rule; the full adapter where nothing is within all bounds."""
        met = self.met(scores)
        if self.rule.goal != "best":
            kept = np.where(met, self.kept, np.inf)
            met &= kept <= kept.min(axis=1, keepdims=True)
        rows = first_best(np.where(met, scores, -np.inf))
        return np.where(met.any(axis=1), rows, self.rows["full"])


@dataclass(frozen=True)
class ScoredCandidates:
    """Candidates with their scores on one task, and what compares two of them in pairs."""

    candidates: Sequence[CandidateRecord]
    scorer: Scorer
    clusters: Codes | None


def choose_within(
    sweep: SweepRecord,
    rule: BoundedRule,
    own: ScoredCandidates,
    others: Mapping[str, ScoredCandidates],
    within: BoundedCriterion,
) -> SweepRecord:
    """`sweep` with the candidate that `rule` takes in place of the one of the best score.

    `own` and `others` (by task) are what `within` was made of. Where nothing is within all bounds the full adapter is
    taken, and a warning says so.
    """
    sign = own.scorer.metric.sign
    scores = sign * floats([row.score for row in own.candidates])[None]
    chosen = own.candidates[int(within.choose(scores)[0])].variant
    met = within.met(scores)[0]
    found = choose_anew(sweep, chosen, own.scorer, own.clusters)
    warnings = () if met.any() else (_no_candidate(rule),)
    return replace(
        found,
        select=str(rule),
        bounds=tuple(
            _bound_record(bound, own if bound.task is None else others[bound.task], chosen, within)
            for bound in rule.bounds
        ),
        warnings=(*sweep.warnings, *warnings),
    )


def _bound_record(bound: Bound, on: ScoredCandidates, chosen: str, within: BoundedCriterion) -> BoundRecord:
    reference = on.candidates[within.rows[bound.of]]
    row, mine = next((row, one) for row, one in enumerate(on.candidates) if one.variant == chosen)
    sign = on.scorer.metric.sign
    score, held = (sign * floats([one.score])[None] for one in (mine, reference))
    lower = score + within.reach(bound)[row]
    return BoundRecord(
        share=bound.share,
        task=bound.task,
        of=bound.of,
        score=mine.score,
        reference=reference.score,
        limit=plain(float(sign * bound.limit(held)[0, 0])),
        met=bool(bound.holds(score, held)[0, 0]),
        lower=plain(float(sign * lower[0, 0])),
        shown=bool(bound.holds(lower, held)[0, 0]),
        difference=None if mine is reference else difference(on.scorer, mine.items, reference.items, on.clusters),
    )


def _reach(
    bound: Bound, items: Sequence[Sequence[Any]], aggregation: str, sign: int, reference: int, clusters: Codes | None
) -> Floats:
    """`(B,)`: how far below its score each candidate's lower limit against this bound lies, at 95 % (one-sided) for all
    candidates together; 0 of the reference itself, NaN where the record cannot say."""
    found = np.full(len(items), np.nan)
    found[reference] = 0.0
    if len({len(row) for row in items}) > 1 or len(items[0]) < 2:
        return found
    try:
        values = contributions(items, Aggregation.named(aggregation), sign)
    except ArgumentError:  # known to its task alone
        return found
    whole = values[reference][np.isfinite(values[reference])]
    codes = None if clusters is None else codes_at(clusters, np.flatnonzero(np.isfinite(values[reference])).tolist())
    alone = mean_test(np.zeros(len(whole)), whole, clusters=codes)
    low, high = alone.interval
    # The bound allows a loss of a share of the reference's score, which is not known to the last digit either.
    least = 0.0 if low <= 0.0 <= high else min(abs(low), abs(high))
    allowed = (1 - bound.share) * max(abs(alone.difference) - least, 0.0)
    others = [row for row in range(len(items)) if row != reference]
    for row, test in zip(others, mean_tests(values[others].T, values[reference], clusters=clusters), strict=True):
        found[row] = test.interval[0] - test.difference - allowed
    return found


def _no_candidate(rule: BoundedRule) -> str:
    return (
        f"no candidate is within all bounds of sweep_select={rule}, so the full adapter is kept. A lower share, or "
        "one bound less, leaves something to choose from."
    )


def floats(values: Sequence[float | None]) -> Floats:
    """Scores of a record as an array, NaN where there is none."""
    return np.array([np.nan if one is None else one for one in values], dtype=np.float64)
