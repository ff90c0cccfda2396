"""What counts as the same text, and as nearly the same."""

import random

import numpy as np
import pytest

from lm_eval_lora_drop.sweep.documents.similarity import DocumentText, Index, Wording, alike, grams, jaccard, normalise

TEXT = "The company moved its office from Boston to a smaller town because the rent had doubled within a year"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Where is it?", "where  is\nit"),
        ("café", "cafe\u0301"),
        ("ｆｕｌｌ　ＷＩＤＴＨ", "full width"),
        ("“quoted”—dash…", '"quoted" - dash...'),
        ("it’s", "its"),
        ("a\u200bb", "ab"),
        ("Straße", "STRASSE"),
        ("您好，请问。", "您好 请问"),
        ("1,000 dollars", "1000 dollars!"),
        ("12-5", "12 - 5"),
        ("**Bold** text", "bold text"),
        ("room 5, please", "room 5 please"),
    ],
)
def test_differences_that_do_not_count(one, other):
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("1.5", "15"), ("12 - 5", "12 + 5"), ("12 - 5", "12 5"), ("x*y", "x/y"), ("x - y", "x y"), ("-5", "5"),
     ("5%", "5"),
     ("3/4", "34"), ("10:30", "1030"), ("a != b", "a == b"), ("1 23", "12 3"), ("!!!", "???"), ("👍", "👎")],
)  # fmt: skip
def test_signs_that_calculate_count(one, other):
    assert normalise(one) != normalise(other)


def text(*fields):
    return DocumentText.of(fields, "\n".join(fields))


def index(*texts):
    wording = Wording()
    wording.count(texts)
    return Index(texts, wording)


def test_the_similarity_is_that_of_the_sets_of_character_5_grams():
    rng = random.Random(0)
    words = TEXT.lower().split()
    for _ in range(20):
        one, other = (" ".join(rng.choices(words, k=12)) for _ in range(2))
        sets = [{string[i : i + 5] for i in range(len(string) - 4)} for string in (one, other)]
        assert jaccard(grams(one), grams(other)) == len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        assert np.all(np.diff(grams(one)) > 0)


def test_all_pairs_of_a_batch_are_those_that_a_pairwise_comparison_finds():
    rng = random.Random(1)
    base = ["".join(rng.choices("abcdefghij ", k=90)) for _ in range(12)]
    edited = [string[:50] + "".join(rng.choices("klmno ", k=rng.randrange(12))) + string[50:] for string in base]
    texts = [text(string) for string in base]
    queries = [text(string) for string in [*edited, "".join(rng.choices("abc", k=90))]]
    found = index(*texts)
    wording = Wording()
    wording.count(texts)
    by_index = [{match.position for match in matches} for matches in found.near(queries)]
    assert by_index == [{i for i, one in enumerate(texts) if alike(query, one, wording)} for query in queries]
    assert sum(map(len, by_index)) > 6


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: s.replace("smaller", "larger"),
        lambda s: s.replace("company", "comapny"),
        lambda s: s.replace("within a year", "within one year"),
        lambda s: s[4:],
        lambda s: s + " or so",
    ],
)
def test_a_small_edit_is_nearly_the_same(edit):
    (match,) = index(text(TEXT)).matches([text(edit(TEXT))])
    assert match is not None
    assert not match.equal


def test_other_numbers_make_another_problem():
    problem = "A farm has {} hens. Half of them are sold and {} new hens are bought. How many hens are there now?"
    one, other, names = (text(problem.format(*numbers)) for numbers in ((24, 7), (42, 7), (24, 7)))
    assert index(one).matches([other]) == [None]
    assert index(one).matches([names])[0].equal


def test_one_other_number_in_a_long_text_does_not():
    long = " ".join(f"{TEXT} and part {letter} of the story goes on" for letter in "abcdef")
    assert index(text(long + " at 10")).matches([text(long + " at 9")])[0] is not None


def test_a_short_text_is_compared_for_equality_only():
    found = index(text("What is the capital of France?"))
    assert found.matches([text("What is the capital of Greece?"), text("what is the capital of france")]) == [
        None,
        found.equal(text("What is the capital of France?")),
    ]


def test_one_context_with_two_questions_is_two_documents():
    first, second = text(TEXT * 3, "Where did it move?"), text(TEXT * 3, "Why was that?")
    assert index(first).matches([second]) == [None]
    assert index(first).matches([text(TEXT * 3 + " indeed", "Where did it move to?")])[0] is not None


def test_wording_that_many_documents_share_says_nothing():
    # Forty documents of one wording, without numbers, that differ by the two words filled in.
    rng = random.Random(2)
    words = ["".join(rng.choices("abcdefghijklmnop", k=7)) for _ in range(80)]
    texts = [text(f"Read with care what follows and say in one word whether {a} is greater than {b} in size.")
             for a, b in zip(words[::2], words[1::2], strict=True)]  # fmt: skip
    found = index(*texts)
    assert all([match.position for match in matches] in ([], [i]) for i, matches in enumerate(found.near(texts)))
