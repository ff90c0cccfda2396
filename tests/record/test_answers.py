"""Answers of the evaluated split that are kept: bit for bit, and only for the very same group."""

import math

import pytest

from lm_eval_lora_drop.record.answers import KeptAnswers
from lm_eval_lora_drop.record.fingerprint import digest


@pytest.mark.parametrize(
    "answers",
    [
        ["", "two\nlines", "half \ud83d of a pair", "é"],
        [(-0.1 - 1e-17, True), (-math.inf, False)],
        [-1.25, -math.inf],
    ],
)
def test_come_back_as_they_were(tmp_path, answers):
    """Texts, log-likelihoods with their flag, rolling ones; infinity and half a character too."""
    KeptAnswers(tmp_path).put(digest("a"), answers)
    assert KeptAnswers(tmp_path).get(digest("a"), len(answers)) == answers
    assert KeptAnswers(tmp_path).get(digest("b"), len(answers)) is None


@pytest.mark.parametrize("damage", [lambda raw: raw[:-9], lambda raw: raw.replace(b"yes", b"yea"), lambda _: b"\xff\0"])
def test_a_damaged_file_is_answered_again(tmp_path, caplog, damage):
    """Cut off, altered or foreign: a warning that names the file, and no answers."""
    kept = KeptAnswers(tmp_path)
    kept.put(digest("a"), ["yes", "no"])
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert kept.get(digest("a"), 2) is None
    assert str(file) in caplog.text


def test_another_number_of_requests_is_another_group(tmp_path, caplog):
    """Fewer answers than requests would be handed to the wrong documents."""
    kept = KeptAnswers(tmp_path)
    kept.put(digest("a"), ["yes", "no"])
    assert kept.get(digest("a"), 3) is None
    assert "another group" in caplog.text
