"""Reads a yes or no from free text, in English and Chinese."""

from __future__ import annotations

import re
import unicodedata

# A word like 是 or 可以 is an answer only where it stands alone ("是的，..."): running text is full of it ("我是").
# 合适 and its like say enough anywhere. A negation holds its positive word inside ("不太合适", "not suitable"), so both
# sides are looked for at once. "好的" is no answer but the polite start of one.
_ALONE = r"(?<!\w)(?:{words})(?=[的啊呀]?(?:\W|$))"
_FORMS = re.compile(
    rf"""
    (?P<no> 不(?:是|太|很|够)?(?:一[个句])?[很太]?(?:合适|合適|恰当|正确) | 不符合 | 无关 | 错误
          | {_ALONE.format(words="否|不|不是|不对|不太对|不行|不能|不可以?|不会|不好|错")}
          | \b(?:no|not|nope|false|incorrect|unsuitable|inappropriate|irrelevant|isn't|doesn't)\b )
  | (?P<yes> 合适 | 合適 | 恰当 | 正确
          | {_ALONE.format(words="是|对|可以|能|没错|没有?问题")}
          | \b(?:yes|yeah|yep|true|correct|suitable|appropriate|relevant)\b )
    """,
    re.VERBOSE | re.IGNORECASE,
)
# "是否合适" asks; it affirms nothing. A model that repeats the question has not answered yet.
_QUESTION = re.compile(
    r"是不是|是否(?:合适|合適|恰当|正确)?|对不对|合不合适|“?是”?(?:或|还是)“?否”?|\byes\s*(?:/|or)\s*no\b",
    re.IGNORECASE,
)


def read_label(text: str) -> int | None:
    """1 for yes, 0 for no, by the first word that says either; None where nothing does.

    >>> read_label("是的，这个回复合适"), read_label("不是"), read_label("No, it is not."), read_label("也许")
    (1, 0, 0, None)
    """
    found = _FORMS.search(_QUESTION.sub(" ", text.replace("’", "'")))
    if found is None:
        return None
    return 0 if found.lastgroup == "no" else 1


def is_one_word(text: str) -> bool:
    """Whether the text is a single word, punctuation aside; up to three Chinese characters in a row count as one."""
    words = re.findall(r"[^\W_]+", "".join(" " if unicodedata.category(c)[0] in "PSZ" else c for c in text))
    if len(words) != 1:
        return False
    chinese = sum("\u3400" <= character <= "\u9fff" for character in words[0])
    return chinese == 0 or len(words[0]) <= 3
