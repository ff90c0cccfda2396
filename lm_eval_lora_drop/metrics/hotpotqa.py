"""HotpotQA's answer metrics.

`normalize_answer`, `exact_match` and `f1` follow the official `hotpot_evaluate_v1.py` (repository hotpotqa/hotpot).
The paper's EM measures how completely the response contains the label, which a wordier model meets more easily; `contains` is
our form of it (whole words, 0 or 1), and the strict measure stands beside it.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CLOSED_ANSWERS = {"yes", "no", "noanswer"}


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation and without articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """1 if both are the same after normalisation."""
    return float(normalize_answer(prediction) == normalize_answer(answer))


def f1(prediction: str, answer: str) -> float:
    """Harmonic mean of token precision and recall; 0 when one side is yes, no or noanswer and the other differs."""
    predicted, expected = normalize_answer(prediction), normalize_answer(answer)
    if predicted != expected and (predicted in _CLOSED_ANSWERS or expected in _CLOSED_ANSWERS):
        return 0.0
    ours, theirs = predicted.split(), expected.split()
    same = sum((Counter(ours) & Counter(theirs)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(ours), same / len(theirs)
    return 2 * precision * recall / (precision + recall)


def contains(prediction: str, answer: str) -> float:
    """1 if the normalised answer occurs in the normalised prediction as whole words: "no" is not in "know".

    An answer of which nothing is left (articles, punctuation) is contained only in a prediction of the same kind.
    """
    expected = normalize_answer(answer)
    if not expected:
        return exact_match(prediction, answer)
    return float(f" {expected} " in f" {normalize_answer(prediction)} ")


def mean_of_given(items: Sequence[float | None]) -> float:
    """The mean of the items that are not None; NaN when all are. For a score that only some documents have."""
    given = [item for item in items if item is not None]
    return sum(given) / len(given) if given else float("nan")
