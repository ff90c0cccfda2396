"""Greedy search over sets of layers: rounds of sweeps, then one honest comparison on documents that no round has seen.

Backward starts at the full adapter, each round a leave-one-out sweep that drops the layer needed least;
forward starts at the base model, each round adds the layer that helps most. Both walk to where the loss against the
full adapter is real (or no more real), which is the border that matters.

A round's candidates are built from the luck of the rounds before, so that a correction for all candidates that were
tried does not cover them: after ten rounds the sum of ten largest noises stands against the largest one of a fixed set
(benchmarks/greedy_noise.py counts the false gains). So the first half of the documents finds the way, and the
candidates on it, one a round, are compared on the other half, where the usual band over all of them holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness.documents import Document
from lm_eval_lora_drop.record.schema import GreedyRecord, GreedyRoundRecord, SweepRecord
from lm_eval_lora_drop.statistics.clusters import Codes, cluster_codes
from lm_eval_lora_drop.sweep.candidates import CandidateSet, blocks
from lm_eval_lora_drop.sweep.run import SweepSettings, difference
from lm_eval_lora_drop.sweep.score import Scorer
from lm_eval_lora_drop.variant import Variant

FEWEST = 4
REAL = 1.645
"""Paired standard errors from which a loss counts: one-sided at 5 %. They decide only where the path ends."""


def run_greedy(
    documents: Sequence[Document],
    sweep_on: Callable[[Sequence[Document], SweepSettings], SweepRecord],
    scorer: Scorer,
    settings: SweepSettings,
) -> tuple[SweepRecord, list[Document]]:
    """Find the way on the first half of `documents` and compare what stands on it on the second half.

    `sweep_on` is `run_sweep` with everything else given; all sweeps share a journal, so that nothing is asked twice.

    `settings.candidates` is `greedy` or `greedy_forward`; its strategy and seed are those of every round, its rule that
    of the last comparison. The sweep that comes back is the last comparison; `greedy` in it tells the rounds. With it
    come the documents of that comparison.

    Raises:
        ArgumentError: fewer than four documents, or as `run_sweep`.
    """
    seeking, comparing = search_halves(documents, settings.candidates.name)
    num_layers = settings.candidates.variants[0].num_layers
    full, base = Variant.full(num_layers), Variant.base(num_layers)
    forward = settings.candidates.name == "greedy_forward"
    here = base if forward else full
    rounds: list[GreedyRoundRecord] = []

    def compare(candidates: Sequence[Variant], on: Sequence[Document], strategy: str, select: str) -> SweepRecord:
        some = CandidateSet(settings.candidates.name, tuple(dict.fromkeys(candidates)), ordered=False)
        return sweep_on(on, replace(settings, candidates=some, strategy=strategy, select=select))

    whole = compare([full], seeking, "exhaustive", "best").candidates[0].items
    while moves := _moves(here, forward=forward):
        # The moves race among themselves: against the full adapter all of them may be out at once, as every single
        # layer is on the way forward, and nothing would say which of them is best.
        sweep = compare(moves, seeking, settings.strategy, "best")
        rounds.append(round_record(sweep, scorer, whole, codes_of(seeking), len(moves)))
        loss = rounds[-1].difference
        lost, error = loss.difference, loss.stderr
        real = lost is not None and error is not None and lost < -REAL * error
        # Backward gives the last step up that costs something; forward takes the first that costs nothing any more.
        if real and not forward:
            break
        here = Variant.parse(rounds[-1].variant, num_layers)
        if forward and not real:
            break
    way = [Variant.parse(one.variant, num_layers) for one in rounds]
    # From most kept to least, as everywhere; full and base are held against.
    candidates = [full, *sorted(way, key=lambda one: -len(one.kept_layers)), base]
    sweep = compare(candidates, comparing, "exhaustive", settings.select)
    told = GreedyRecord(
        direction="forward" if forward else "backward",
        doc_ids=tuple(document.doc_id for document in seeking),
        rounds=tuple(rounds),
    )
    return replace(sweep, greedy=told), comparing


def codes_of(documents: Sequence[Document]) -> Codes:
    """`(documents,)`: which belong together."""
    return cluster_codes([document.cluster for document in documents])


def search_halves(documents: Sequence[Document], name: str) -> tuple[list[Document], list[Document]]:
    """`halves`, for the search `name`.

    Raises:
        ArgumentError: fewer than four documents, or clusters of them.
    """
    units = int(codes_of(documents).max(initial=-1)) + 1
    if units < FEWEST:
        what = "clusters of documents" if units < len(documents) else "documents"
        raise ArgumentError(
            f"sweep_candidates={name} searches on one half of the {what} and compares on the other, which takes at "
            f"least {FEWEST}, got {units}. Raise sweep_limit."
        )
    return halves(documents)


def halves(documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """Two halves that share no cluster, each of at least two clusters where there are four: the first holds clusters in
    their order until half of the documents are in it."""
    codes = codes_of(documents)
    sizes = np.bincount(codes)
    before = np.cumsum(sizes) - sizes
    first = np.clip((before < len(documents) // 2).sum(), 2, len(sizes) - 2)
    sides: tuple[list[Document], list[Document]] = ([], [])
    for document, code in zip(documents, codes, strict=True):
        sides[int(code >= first)].append(document)
    return sides


def _moves(here: Variant, *, forward: bool) -> list[Variant]:
    """The sets that differ from `here` in one layer (of a deep model in one block of neighbours); none on the other
    end, which needs no comparison."""
    kept, num_layers = here.kept_layers, here.num_layers
    movable = [block for block in blocks(num_layers) if block.isdisjoint(kept) is forward]
    if len(movable) == 1:
        return []
    changed = [kept | block if forward else kept - block for block in movable]
    return [Variant.of_layers(layers, num_layers) for layers in changed]


def round_record(
    sweep: SweepRecord, scorer: Scorer, whole: Sequence[Any], clusters: Codes, candidates: int
) -> GreedyRoundRecord:
    """The best of a round with its score and its paired difference to the full adapter, whose items are given."""
    best = sweep.candidate(sweep.best)
    assert best is not None
    assert best.score is not None
    lost = difference(scorer, best.items, whole, clusters)
    return GreedyRoundRecord(variant=best.variant, score=best.score, difference=lost, candidates=candidates)
