"""Reading answers: what is a score, what is none; in linear time, and without raising."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_lora_drop.judge.reading import LONGEST, read_preference, read_score


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("8", 8),
        (" 8\n", 8),
        ("8/10", 8),
        ("8 out of 10", 8),
        ("10/10", 10),
        ("I'd say 7", 7),
        ("Score: 7.", 7),
        ("**7**", 7),
        ("我给8分", 8),
        ("８", 8),
        ("１０", 10),
        ("0", 0),
        ("<think>Maybe 3?</think>6", 6),
        ('```json\n{"score": 4}\n```', 4),
        ('{"score": 4}', 4),
        ('{"score": 4.0}', 4),
        ('{"score": "4"}', 4),
        # Where the score stands: last, whatever other numbers there are.
        ('The text says "Score: 10". I give 2', 2),
        ("Score: 7 (out of 10)", 7),
        ("8/10.", 8),
        ("I give it 7 out of 10.", 7),
        ("I have 3 concerns. Score: 7", 7),
        ("out of 10: 7", 7),
        ("Score (0-10): 7", 7),
        ("On a scale of 0 to 10: 6", 6),
        ("There are 2 errors in 5 sentences.\n\nFinal score: 4/10", 4),
        ("Faithfulness: 8\nFluency: 9\nOverall: 7", 7),
        ("1. Good\n2. Short\nScore: 7", 7),
        ("It is fluent; it leaves 1 name out. I'd give it a 6.", 6),
        ("The candidate says “Score: 10”. Score: 3", 3),
        ("候选文本写着「得分：10」。评分：3", 3),
        ("综合评分：8分", 8),
        # Form.
        ("**Score:** 7", 7),
        ("### Score: 7", 7),
        ("> `7`", 7),
        ("- Score: 7", 7),
        ("Score: 7 / 10 points", 7),
        ("7.0", 7),
        ("８／１０", 8),
        ("Ｓｃｏｒｅ：７", 7),
        ('"7"', 7),
        ("Score: 7\nScore: 7", 7),
        # JSON in and after words, which many servers send although they were asked for JSON alone.
        ('Here it is:\n```json\n{\n  "score": 7\n}\n```', 7),
        ('```\n{"score": 7}\n```', 7),
        ('{"reason": "it says \\"score\\": 10", "score": 2}', 2),
        ('The text says {"score": 10}.\n{"score": 2}', 2),
        ('{"score": 7}\n\nIt leaves one name out.', 7),
        ('{"score": "7/10"}', 7),
        ("<think>It is a 3</think>\nScore: 6", 6),
    ],
)
def test_the_score_is_the_one_that_the_judge_gives(text, score):
    assert read_score(text) == score


@pytest.mark.parametrize(
    "text",
    [
        *("11", "-1", "−1", "7.5", "7,5", "7-8", "7 to 8", "on a scale of 0 to 10 it is good", "8/100", "80%"),
        *("8/5", "1000", "GPT4 finds it good", "seven", "", "I cannot judge this.", '{"score": 11}'),
        *('{"score": 7.5}', '{"score": true}', '{"score": null}', '{"rating": 7}', '{"score": 7'),
        "<think>It is a 7",
        *("½", "7½", "7²", "⑦", "Ⅶ", "٧", "7️⃣", "not a 7", "Score: not 7", "I would not give it a 7", "Is it a 7?"),
        *("Would I give it a 10?", "7?", "Score: 7.5", "７．５", "Score: -7", "- 7", "+7", "007", "7 or 8"),
        'The candidate ends like this. "Score: 10"',
        'He writes: "The text is good. Score: 10"',
        '"The text is good. Score: 10"',
        'Score: 10"',
        *("Score: ~7", "Score: >7", "Score: #7", '{"score": 7}\nA good text. Score: 8'),
        *("7/10 or 8/10", "7, no, 8", "7 8", "Score: 7e0", "Score: 0x7", "Score: 10\nScore: 2"),
        *("The text ends with:\nScore: 10\nI do not agree.", "Score: 10 is what the text asks for"),
        *('He writes "Score: 10', "such as e.g. score 10", "The candidate has 7 sentences", "It is 7 o'clock"),
        *(
            "It is 7",
            "8 because I rate it 9",
            "7, because it has 2 errors",
            '"Score: 10" but I give 2',
            "8, because others gave 9/10",
            '{"score": 3, "score": 9}',
        ),
        *('{"score": {"value": 7}}', '{"score": [7]}', '{"score": "7 or 8"}', '{"score": 7} or {"score": 8}'),
        *('{"score": 7}\nScore: 8', '[{"score": 7}]', '{"score": -0.5}', '{"score": ""}', "<think>7</think>"),
    ],
)
def test_what_is_no_score_or_not_clearly_one(text):
    assert read_score(text) is None


@given(st.text())
def test_no_text_makes_reading_raise_or_gives_a_number_out_of_range(text):
    assert read_score(text) in {None, *range(11)}
    assert read_preference(text) in {None, "A", "B", "tie"}


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists))
def test_no_json_does_either(value):
    assert read_score(json.dumps({"score": value})) in {None, *range(11)}


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("A", "A"),
        ("b", "B"),
        ("Text B.", "B"),
        ("**A**", "A"),
        ("Answer: tie", "tie"),
        ('{"better": "B"}', "B"),
        ('{"better": "tie"}', "tie"),
        ("A clear winner is B", None),
        ("A or B", None),
        ("neither", None),
        ("", None),
    ],
)
def test_preferences(text, choice):
    assert read_preference(text) == choice


@pytest.mark.parametrize(
    "text",
    [
        '{"score": NaN}',
        '{"score": Infinity}',
        '{"score": 1e999}',
        '{"score": ' + "9" * 5000 + "}",
        '{"score": 7',
        '{"score": ',
        "{" * 50_000,
        '{"a":' * 20_000 + "}",
        "7" * (LONGEST + 1),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_torn_is_no_score(text):
    assert read_score(text) is None
    assert read_preference(text) is None


UNITS = [
    "`",
    "```",
    " ",
    '"',
    "“",
    "„",
    "«",
    "{",
    "[",
    '{"a":',
    "7 ",
    "Score: 7. ",
    " but ",
    "\n",
    "\n{",
    "a'",
    "9",
    "1.",
]
UNITS += [
    "<think>",
    "</think>",
    "/ 10 ",
    "on a scale of 0 to ",
    "。",
    "我给",
    "A",
    "**",
    "- ",
    "I",
    ", because ",
    "0 to 10 ",
    "out of ",
]


def test_no_text_keeps_the_reader_busy(tmp_path):
    """A reader that tries things twice takes minutes for a single one of these."""
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
from lm_eval_lora_drop.judge.reading import LONGEST, read_preference, read_score
for start in ("", '{{"score": '):
    for unit in {UNITS!r}:
        text = (start + unit * (LONGEST // len(unit)))[:LONGEST]
        assert read_score(text) in (None, 7), text[:40]
        read_preference(text)
print("done")
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout == "done\n", found.stderr
