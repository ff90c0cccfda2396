"""How the score falls with K under each training seed: a study's sweeps, seed by seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.show.figures.seeds import SeedCurves
from lm_eval_lora_drop.statistics.crossed import CrossedMean
from lm_eval_lora_drop.study.claims import difference
from lm_eval_lora_drop.study.evidence import Arm, Floats, mean_of
from lm_eval_lora_drop.sweep.recorded import RecordedSweep

Limits = tuple[float, float, float]
"""A mean difference and its 95 % interval."""


def seed_curves(arm: Arm, arms: Sequence[Arm]) -> SeedCurves | None:
    """Differences to full over K, of an arm that `has_curves`; None of another. A K for which no document has a value
    under every seed is left out."""
    tables = _tables(arm)
    if not tables:
        return None
    records = arm.records
    metric, codes = records[0].metric, RecordedSweep.from_record(records[0]).codes
    assert metric is not None
    mean: dict[int, Limits] = {}
    for boundary in tables[0]:
        values = np.stack([one[boundary] for one in tables])
        if np.isfinite(values).all(axis=0).any():
            mean[boundary] = _limits(mean_of(values, codes))
    # Full differs from itself nowhere: its interval would only say how wide one is where nothing differs.
    mean[records[0].num_layers] = (0.0, 0.0, 0.0)
    return SeedCurves(
        title=f"{arm.task.name}, {arm.training}: {len(codes)} validation documents",
        metric=str(metric),
        num_layers=records[0].num_layers,
        seeds={
            "adapter" if seed is None else f"seed {seed}": {
                boundary: float(np.nanmean(one[boundary])) for boundary in mean
            }
            for seed, one in zip(arm.of_runs, tables, strict=True)
        },
        mean=mean,
        test=fixed_on_test(arm, arms, (metric.name, metric.filter)),
    )


def has_curves(arm: Arm) -> bool:
    """Whether its K was found by sweeps over boundaries that read the same documents."""
    return bool(_tables(arm))


def _tables(arm: Arm) -> list[dict[int, Floats]]:
    """Of each seed the differences to full at the K that all seeds asked; none where there are no two such K."""
    records = arm.records
    over_k = [one.sweep is not None and one.sweep.candidate_set == "boundary" for one in records]
    if not arm.choice.startswith("auto") or not all(over_k):
        return []
    if len({one.validation and one.validation.doc_ids for one in records}) != 1:
        return []
    try:
        tables = [_differences(RecordedSweep.from_record(record)) for record in records]
    except ArgumentError:  # an aggregation that is known to its task alone
        return []
    common = sorted(set.intersection(*(set(one) for one in tables)))
    return [{boundary: one[boundary] for boundary in common} for one in tables] if len(common) > 1 else []


def _differences(sweep: RecordedSweep) -> dict[int, Floats]:
    """`(documents,)` differences to full of each K, NaN where one of both has no value; empty without full."""
    if sweep.full is None:
        return {}
    full = sweep.values[sweep.candidates.index(sweep.full)]
    named = zip(sweep.candidates, sweep.values, strict=True)
    return {kept.boundary: values - full for kept, values in named if kept.boundary is not None}


def fixed_on_test(arm: Arm, arms: Sequence[Arm], key: tuple[str, str]) -> dict[int, Limits]:
    """The fixed K that answered the test split: their differences to full there, by the metric and filter of `key`."""
    mine = [one for one in arms if (one.task, one.training) == (arm.task, arm.training)]
    full = next((one for one in mine if one.choice == "full"), None)
    if full is None:
        return {}
    fixed = [one for one in mine if one.choice.isdigit() and one.seeds == full.seeds and key in one.metrics]
    return {int(one.choice): _limits(difference(one, full, key)) for one in fixed}


def _limits(mean: CrossedMean) -> Limits:
    return mean.value, *mean.interval
