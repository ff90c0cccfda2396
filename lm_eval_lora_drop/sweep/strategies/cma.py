"""Continuous strengths, one per layer, by CMA-ES (Hansen, 2016, https://arxiv.org/abs/1604.00772; package `cmaes`).

Each generation is a sweep of strength vectors drawn around the best of the last one, from the full adapter on. As in a
greedy search they come from the luck of the generations before: the first half of the documents finds them, and the
best one, with the mean of the last distribution, is compared with full and base on the other half.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lm_eval_lora_drop.harness.documents import Document
from lm_eval_lora_drop.record.schema import GreedyRecord, GreedyRoundRecord, SweepRecord
from lm_eval_lora_drop.statistics.aggregation import Floats
from lm_eval_lora_drop.sweep.backend import Peers
from lm_eval_lora_drop.sweep.candidates import STRENGTHS, CandidateSet, blocks
from lm_eval_lora_drop.sweep.run import SweepSettings, in_step
from lm_eval_lora_drop.sweep.score import Scorer
from lm_eval_lora_drop.sweep.select import contributions, on_common_documents
from lm_eval_lora_drop.sweep.strategies.greedy import codes_of, round_record, search_halves
from lm_eval_lora_drop.variant import Variant

BUDGET = 150
"""Candidates that are tried where `sweep_size` does not say how many; whole generations."""
SIGMA = 0.3
"""Standard deviation of the first strengths around 1."""


def run_cma(
    documents: Sequence[Document],
    sweep_on: Callable[[Sequence[Document], SweepSettings], SweepRecord],
    scorer: Scorer,
    settings: SweepSettings,
    *,
    peers: Peers,
    budget: int | None,
) -> tuple[SweepRecord, list[Document]]:
    """Search on the first half of `documents` and compare on the second half, as `run_greedy` does; a deep model's
    layers share a strength in blocks of neighbours.

    All sweeps share a journal and the vectors depend on the seed and the scores alone, so that a search that was killed
    resumes.

    `budget` is how many candidates may be tried, at least one generation.

    Raises:
        ArgumentError: fewer than four documents, or as `run_sweep`.
    """
    from cmaes import CMA

    seeking, comparing = search_halves(documents, settings.candidates.name)
    num_layers = settings.candidates.variants[0].num_layers
    groups = blocks(num_layers)
    search = CMA(
        mean=np.ones(len(groups)),
        sigma=SIGMA,
        bounds=np.tile([0.0, max(STRENGTHS)], (len(groups), 1)),
        seed=settings.seed,
    )

    def variant_of(vector: NDArray[np.float64]) -> Variant:
        """Three decimals: the notation stays short, and rounding on another machine changes no candidate."""
        kept = [f"{layer}x{s:.3f}" for group, s in zip(groups, vector, strict=True) for layer in group if s >= 0.0005]
        return Variant.parse("+".join(kept) or "none", num_layers)

    def compare(candidates: Sequence[Variant], on: Sequence[Document], select: str) -> SweepRecord:
        some = CandidateSet(settings.candidates.name, tuple(dict.fromkeys(candidates)), ordered=False)
        return sweep_on(on, replace(settings, candidates=some, select=select))

    full, base = Variant.full(num_layers), Variant.base(num_layers)
    whole = compare([full], seeking, "best").candidates[0].items
    rounds: list[GreedyRoundRecord] = []
    best, least = full, np.inf
    most = BUDGET if budget is None else budget
    while sum(one.candidates for one in rounds) + search.population_size <= most or not rounds:
        # One process's numbers: another machine may round another way, and all must ask the same.
        vectors = in_step(peers, lambda: [search.ask() for _ in range(search.population_size)])[0]
        variants = [variant_of(vector) for vector in vectors]
        sweep = compare(variants, seeking, "best")
        losses = dict(zip((row.variant for row in sweep.candidates), _losses(sweep, scorer), strict=True))
        search.tell([(vector, losses[str(one)]) for vector, one in zip(vectors, variants, strict=True)])
        rounds.append(round_record(sweep, scorer, whole, codes_of(seeking), len(variants)))
        if losses[sweep.best] < least:
            best, least = Variant.parse(sweep.best, num_layers), losses[sweep.best]
    mean = variant_of(in_step(peers, lambda: search.mean)[0])
    sweep = compare([full, best, mean, base], comparing, settings.select)
    told = GreedyRecord(
        direction="cma_es", doc_ids=tuple(document.doc_id for document in seeking), rounds=tuple(rounds)
    )
    return replace(sweep, greedy=told), comparing


def _losses(sweep: SweepRecord, scorer: Scorer) -> list[float]:
    """Of each candidate, lower is better; a document without a value counts as the worst, as in a choice."""
    rows, sign = [row.items for row in sweep.candidates], scorer.metric.sign
    scores: Floats = sign * np.array([[np.nan if row.score is None else row.score for row in sweep.candidates]])
    values = contributions(rows, scorer.aggregation, sign)
    ones = np.ones((1, values.shape[1]), dtype=np.int64)
    found = on_common_documents(rows, values, scores, ones, worst=scorer.metric.worst)[1][0]
    return [float(one) for one in np.where(np.isfinite(found), -found, np.finfo(float).max)]
