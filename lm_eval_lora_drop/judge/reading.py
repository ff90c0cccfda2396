"""Reads what a judge said: an integer of a scale, or a choice. Anything else is no verdict.

By rule, not by search: JSON of the shape that was asked for, or else the last sentence, which must be a score from its
first word to its last ("7", "Score: 7/10", "I give 7"). Two sentences that give different scores give none.

Every reader takes time linear in the length of the text: tokens are found by alternatives that begin with different
characters, so nothing is tried twice, and a text of more than `LONGEST` characters is not read at all.
"""

from __future__ import annotations

import json
import math
import re
from functools import lru_cache
from typing import Any

LONGEST = 100_000
"""Characters of an answer that is read; what was asked for has 12."""
_TOKEN = re.compile(r"[0-9]+(?:\.[0-9]+)?|[^\W\d_]+(?:'[^\W\d_]+)?|[^\s]")
# Full-width ASCII and the ideographic space only: NFKC would make 1/2 of the one character for it, and 72 of "7" with
# an exponent.
_NARROW = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: " ", 0x2019: "'", 0x02BC: "'"}
_NAMES = "think|thinking|thought|thoughts|reasoning|seed:think"
_THOUGHTS = re.compile(
    rf"(?P<begin><(?:{_NAMES})>|\[THINK\]|◁think▷|<\|START_THINKING\|>|<\|begin_of_thought\|>|<unused94>"
    r"|<\|channel\|>(?:analysis|commentary))"
    rf"|</(?:{_NAMES})>|\[/THINK\]|◁/think▷|<\|END_THINKING\|>|<\|end_of_thought\|>|<unused95>"
    r"|<\|channel\|>final(?:<\|message\|>)?",
    re.IGNORECASE,
)
"""The marks around a model's thoughts: DeepSeek, Qwen and GLM, Mistral, Kimi, Cohere, Gemma, Seed, gpt-oss."""
Scale = tuple[int, int]
_MARKDOWN = "*_`#>~ \t"
_QUOTED = {('"', '"'), ("\u201c", "\u201d")}
_SENTENCE_END = re.compile("(?<=[.!?;])[ \t]+(?=[A-Z0-9\u4e00-\u9fff*])|(?<=。)")
"""Not before a small letter ("e.g. score 10") nor a quotation, which is somebody else's score."""
_ITEM = re.compile(r"^[0-9]{1,2}[.)]\s+(?=[^\s0-9])")
"""The number of a list's item, which is no score: "1. Good"."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ACTS = _words(
    "score scores rating rate grade scale overall verdict answer give i'd i'll 评分 得分 分数 打分 总分 "
    "最终得分 最终评分 综合评分 给 打 我给 我打 我给出 我的评分是 评分是 评分为 得分是 得分为 总分是 总分为"
)
"""Words that make a sentence a score; a sentence of `_FILLERS` alone is not ("it is 7")."""
_FILLERS = _words(
    "a an the on from my your final is of it this i would will say assign total prediction summary translation text "
    "output so thus therefore : = 是 为"
)
_UNITS = _words("point points 分 scale")
_CHOICES = {"a": "A", "b": "B", "tie": "tie"}
_CHOICE_WORDS = _words("text output answer system option the final better my choice is : =")


@lru_cache
def _scale_phrase(scale: Scale) -> re.Pattern[str]:
    """How a judge repeats the scale beside its score."""
    low, high = scale
    return re.compile(rf"\(?(?:(?:/|\bout of|满分)\s*{high}|(?<![\d.-]){low}\s*(?:-|to)\s*{high})(?!\.?\d)\)?", re.I)


def survives_cut(text: str) -> bool:
    """Whether what an answer says is the same however it went on where it was cut off: a line or an object has ended.

    "Score: 1" may have become "Score: 10".
    """
    return text.rstrip(" ").endswith(("\n", "}", "```"))


def read_score(text: str, scale: Scale = (0, 10)) -> int | None:
    """The integer of `scale`, ends included, that `text` gives, or None. With the default scale:

    "8", "8/10", "I'd say 7", full-width digits and {"score": 7} are scores; "11", "-1", "7.5", "7-8", "0 to 10",
    "8/100", "not a 7", one half, two different scores, torn JSON and a refusal are none.
    """
    text, member = _opened(text, "score", scale)
    return _score_of(member[0], scale) if member is not None else _spoken(text, scale)


def read_preference(text: str) -> str | None:
    """ "A", "B" or "tie", or None: free text is not searched, since "a" is an English word."""
    text, member = _opened(text, "better", (0, 10))
    if member is not None:
        text = member[0] if isinstance(member[0], str) else ""
    if len(text) > 100:
        return None
    words = [word.lower() for word in _TOKEN.findall(text) if word not in "*_`#>~.\"'()[]<"]
    if not words or any(word not in _CHOICE_WORDS for word in words[:-1]):
        return None
    return _CHOICES.get(words[-1])


def _opened(text: str, name: str, scale: Scale) -> tuple[str, tuple[Any] | None]:
    """The text without what is not said to us, and the member `name` of the JSON object in it (see `_member`)."""
    text = _plain(text) if len(text) <= LONGEST else ""
    return text, _member(text, name, scale)


def _score_of(value: Any, scale: Scale) -> int | None:
    """A member of a JSON object as a score; a text in it is read by itself."""
    if isinstance(value, str):
        return _spoken(value, scale) if len(value) <= 200 else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if value == int(value) and scale[0] <= value <= scale[1] else None


def _spoken(text: str, scale: Scale) -> int | None:
    """The score of the last sentence; None where another sentence gives another one."""
    found = _scores(text, scale)
    return found[-1] if found and {score for score in found if score is not None} == {found[-1]} else None


def _scores(text: str, scale: Scale) -> list[int | None]:
    """Of each sentence the score that it is."""
    lines = (_ITEM.sub("", line.strip(_MARKDOWN + "\r")) for line in text.split("\n"))
    return [_sentence(sentence, scale) for line in lines for sentence in _SENTENCE_END.split(line) if sentence.strip()]


def _sentence(sentence: str, scale: Scale) -> int | None:
    """The score that a whole sentence is, or None."""
    # "/ 10" becomes a word; "/ 100" stays and makes the sentence unreadable.
    words = _TOKEN.findall(_scale_phrase(scale).sub(" scale ", sentence))
    tokens = [word.lower() for word in words if word not in "*_`"]
    while tokens and tokens[-1] in (".", "!", *_UNITS):
        tokens.pop()
    if len(tokens) > 2 and (tokens[0], tokens[-1]) in _QUOTED:
        tokens = tokens[1:-1]  # one quotation mark alone belongs to somebody else's sentence
    if tokens and tokens[0] == "-" and len(tokens) > 1 and not tokens[1][0].isdecimal():
        tokens = tokens[1:]  # a list's bullet; before a digit it is a minus
    said = set(tokens[:-1])
    # "It is 7" may be about anything; a word for scoring makes it a score.
    if not tokens or said - _ACTS - _FILLERS or (said and not said & _ACTS):
        return None
    return _integer(tokens[-1], scale)


def _integer(token: str, scale: Scale) -> int | None:
    whole, _, rest = token.partition(".")
    if not (whole.isascii() and whole.isdecimal()) or len(whole) > 3 or rest.strip("0") or (whole[0] == "0" != whole):
        return None
    return int(whole) if scale[0] <= int(whole) <= scale[1] else None


def _plain(text: str) -> str:
    """Without a reasoning model's thoughts and a fence around the whole, full-width forms as ASCII."""
    text = _without_thoughts(text).translate(_NARROW).strip()
    if text.endswith("```") and (fence := text.rfind("```", 0, -3)) >= 0:
        # Only the last block can be the answer; what stands before it is kept where it is no fence of its own.
        inside = text[fence + 3 : -3].removeprefix("json").strip()
        text = f"{text[:fence].rstrip()}\n{inside}".strip()
    return text


def _without_thoughts(text: str) -> str:
    try:
        # What an answer that is JSON as a whole holds in its strings is no mark: it may quote the judged text.
        if text.lstrip().startswith("{") and isinstance(json.loads(text), dict):
            return text
    except (ValueError, RecursionError):
        pass
    kept: list[str] = []
    place, thinking = 0, False
    for mark in _THOUGHTS.finditer(text):
        if mark["begin"]:
            if not thinking:
                kept.append(text[place : mark.start()])
            thinking = True
            continue
        if not thinking:  # a chat template that opens the thoughts itself leaves only their end in the answer
            kept.clear()
        thinking, place = False, mark.end()
    # Thinking when it was cut off: nothing has been said.
    return "" if thinking else "".join(kept) + text[place:]


def _member(text: str, name: str, scale: Scale) -> tuple[Any] | None:
    """The member `name` of the JSON object that `text` is, or ends with from the start of a line; None if it has none.

    A torn object, and one without that member or with it twice, gives (None,): it is an answer, and no verdict.
    """
    start = 0 if text.startswith("{") else text.rfind("\n{") + 1
    if not text.startswith("{", start) or (start and not text.endswith("}")):
        return None
    try:
        pairs, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return (None,)
    # Words may follow, but nothing that could be another verdict.
    rest = text[end:].strip()
    if "{" in rest or set(_scores(rest, scale)) - {None}:
        return (None,)
    found = [value for key, value in pairs if key == name]
    return (found[0],) if len(found) == 1 and not isinstance(found[0], _Pairs) else (None,)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its members in order, so that a name that comes twice is seen."""


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _int(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError("more digits than any score has")
    return int(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_Pairs, parse_constant=_refuse, parse_int=_int)
