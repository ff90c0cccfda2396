"""HotpotQA's metrics.

Every expected value was worked out by hand from the rules of the official `hotpot_evaluate_v1.py` (repository
hotpotqa/hotpot, commit 4c0fa5ea): lower case, ASCII punctuation deleted (not replaced by a space), the words a, an, the
deleted, white space collapsed; F1 over the multiset of tokens; 0 if one side is yes, no or noanswer and the other not.
"""

from __future__ import annotations

import math

import pytest

from lm_eval_lora_drop.metrics.hotpotqa import contains, exact_match, f1, mean_of_given

# prediction, answer, exact match, F1, containment
PAIRS = [
    ("Chief of Protocol", "Chief of Protocol", 1, 1.0, 1),
    ("chief of protocol.", "Chief of Protocol", 1, 1.0, 1),
    ("the Chief of the Protocol", "Chief of Protocol", 1, 1.0, 1),
    ("She was Chief of Protocol of the United States", "Chief of Protocol", 0, 2 * (3 / 8) / (3 / 8 + 1), 1),
    ("Protocol", "Chief of Protocol", 0, 0.5, 0),  # precision 1, recall 1/3
    ("Protocol of Chief", "Chief of Protocol", 0, 1.0, 0),  # a bag of tokens for F1, words in order for containment
    ("yes", "yes", 1, 1.0, 1),
    ("Yes.", "yes", 1, 1.0, 1),
    ("yes, they were", "yes", 0, 0.0, 1),
    ("no", "yes", 0, 0.0, 0),
    ("No, I do not know", "no", 0, 0.0, 1),
    ("I know", "no", 0, 0.0, 0),  # "no" stands inside "know"
    ("noanswer", "Paris", 0, 0.0, 0),
    ("Paris", "noanswer", 0, 0.0, 0),
    ("no answer", "noanswer", 0, 0.0, 0),  # two tokens, so not the closed answer; no common token
    ("", "Paris", 0, 0.0, 0),
    ("", "", 1, 0.0, 1),  # equal, but no common token: the official F1 is 0
    ("the", "", 1, 0.0, 1),
    ("Paris", "The", 0, 0.0, 0),
    ("U.S.A.", "USA", 1, 1.0, 1),
    ("U. S. A.", "USA", 0, 0.0, 0),  # "u s a" loses its article a: "u s"
    ("rock'n'roll", "rock n roll", 0, 0.0, 0),  # "rocknroll": deleted punctuation leaves no space
    ("well-known", "wellknown", 1, 1.0, 1),
    ("3,000", "3000", 1, 1.0, 1),
    ("Kōbō Abe", "kōbō abe", 1, 1.0, 1),
    ("Beyoncé", "Beyonce", 0, 0.0, 0),  # accents are kept
    ("“Imagine”", "Imagine", 0, 0.0, 0),  # only ASCII punctuation goes
    ("安部公房", "安部公房", 1, 1.0, 1),
    ("Greater  London\n", "greater london", 1, 1.0, 1),
    ("a a b", "b b", 0, 2 / 3, 0),  # articles gone: "b" against "b b", precision 1, recall 1/2
    ("New York New York", "New York", 0, 2 * 0.5 / 1.5, 1),
    ("thereabouts", "reabouts", 0, 0.0, 0),  # "the" is an article only as a word
]


@pytest.mark.parametrize(("prediction", "answer", "em", "f1_score", "contained"), PAIRS)
def test_follows_the_official_rules(prediction: str, answer: str, em: int, f1_score: float, contained: int) -> None:
    """Each pair scores what the rules give by hand."""
    assert exact_match(prediction, answer) == em
    assert f1(prediction, answer) == pytest.approx(f1_score, abs=1e-12)
    assert contains(prediction, answer) == contained


def test_mean_of_given_leaves_none_out() -> None:
    """A score by question type is over the documents of that type only."""
    assert mean_of_given([1.0, None, 0.0, None]) == 0.5
    assert math.isnan(mean_of_given([None, None]))
