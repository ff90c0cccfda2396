"""ROUGE F-measure in percent, by Google's `rouge-score` with the Porter stemmer on.

The stemmer is on in the evaluation scripts that SAMSum numbers usually come from (Hugging Face's summarisation
example); without it scores are lower by some tenths. `rouge-score` lower-cases and keeps a-z and 0-9 only: texts in
other scripts score 0.
"""

from __future__ import annotations

from functools import cache
from typing import Any

ROUGE_TYPES = {"rouge_l": "rougeL", "rouge_1": "rouge1", "rouge_2": "rouge2"}
"""Our names and those of `rouge-score`. `rougeL` takes the whole text as one sentence, as the paper's ROUGE-L does."""


@cache
def _scorer() -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(list(ROUGE_TYPES.values()), use_stemmer=True)


def rouge(prediction: str, reference: str) -> dict[str, float]:
    """F-measures, 0 to 100, under the names of `ROUGE_TYPES`."""
    scores = _scorer().score(reference, prediction)
    return {name: 100.0 * scores[theirs].fmeasure for name, theirs in ROUGE_TYPES.items()}
