"""What the documents of a finished sweep say about planning another: how much candidates differ on them."""

from __future__ import annotations

import numpy as np

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.schema import TaskRecord
from lm_eval_lora_drop.statistics.clusters import codes_at
from lm_eval_lora_drop.statistics.power import PairedVariation, detectable_difference, sentence, variation
from lm_eval_lora_drop.sweep.recorded import RecordedSweep
from lm_eval_lora_drop.variant import Variant


def variations(recorded: RecordedSweep) -> list[tuple[Variant, Variant, PairedVariation]]:
    """Two pairs of candidates, each with its reference and how much it varies from that: the chosen one and the most
    different one. What a sweep compares lies between them.

    The reference is the full adapter. Where full was chosen, the next best stands for the chosen one; where it was no
    candidate, the chosen one is the reference. A candidate without two documents (clusters) that have a value under
    both is left out.

    Raises:
        ArgumentError: no candidate but the reference is left.
    """
    candidates, values = recorded.candidates, recorded.values
    reference = candidates.index(recorded.full or recorded.chosen)
    known: dict[int, PairedVariation] = {}
    for row in range(len(candidates)):
        both = np.isfinite(values[reference]) & np.isfinite(values[row])
        codes = codes_at(recorded.codes, np.flatnonzero(both).tolist())
        if row != reference and len(np.unique(codes)) > 1:
            known[row] = variation(values[reference][both], values[row][both], codes)
    if not known:
        raise ArgumentError(
            "no two candidates of the sweep have a value on the same two documents (clusters), so there is nothing to "
            "compare."
        )
    chosen = candidates.index(recorded.chosen)
    first = chosen if chosen in known else max(known, key=lambda row: float(np.nanmean(values[row])))
    widest = max(known, key=lambda row: known[row].spread)
    return [(candidates[row], candidates[reference], known[row]) for row in dict.fromkeys([first, widest])]


def planning(task: TaskRecord) -> str | None:
    """The minimum detectable difference with the documents of this sweep, and how many half of that takes.

    None where the record does not say how much candidates differ: one document, one candidate, no difference, an
    aggregation of the user's own.
    """
    try:
        _, _, known = variations(RecordedSweep.from_record(task))[0]
    except ArgumentError:
        return None
    if not known.spread > 0 or known.documents is None:
        return None
    found = detectable_difference(known.documents, known)
    # One digit, as it is shown: nobody plans for a difference of 0.0617.
    example = float(f"{known.size / 10 if found is None else found / 2:.0e}")
    return sentence(known.documents, known, example)
