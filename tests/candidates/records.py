"""Records of sweeps over any set, with scores drawn at random: for pictures and texts that need no model."""

from __future__ import annotations

import numpy as np

from lm_eval_lora_drop.record.metric import MetricSpec
from lm_eval_lora_drop.record.schema import CandidateRecord, SweepRecord, TaskRecord


def recorded(candidate_set, *, documents, seed=0, higher_is_better=True, chosen=None, scale=0.1):
    rng = np.random.default_rng(seed)
    common = rng.normal(0.5, 0.2, documents)
    items = {str(v): common + rng.normal(rng.normal(0, scale), 0.2, documents) for v in candidate_set.variants}
    sign = 1 if higher_is_better else -1
    best = max(items, key=lambda name: sign * items[name].mean())
    rows = tuple(
        CandidateRecord(
            variant=name,
            score=float(values.mean()),
            stderr=float(values.std(ddof=1) / documents**0.5),
            documents=documents,
            items=tuple(values.tolist()),
        )
        for name, values in items.items()
    )
    sweep = SweepRecord(
        candidate_set=candidate_set.name,
        ordered=candidate_set.ordered,
        strategy="exhaustive",
        select="best",
        seed=0,
        engine="shared",
        aggregation="mean",
        candidates=rows,
        chosen=chosen or best,
        best=best,
    )
    return TaskRecord(
        variant=sweep.chosen,
        boundary=None,
        num_layers=candidate_set.variants[0].num_layers,
        method="sweep",
        fingerprint="sha256:0",
        kept_parameters=1,
        dropped_parameters=1,
        metric=MetricSpec("exact_match", "none", higher_is_better),
        sweep=sweep,
    )
