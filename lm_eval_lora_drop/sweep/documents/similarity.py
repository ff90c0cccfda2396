"""Whether two texts are the same, or nearly: normalisation, character 5-grams, exact Jaccard similarity.

Jaccard similarity of sets of n-grams is the usual measure for near-duplicates (Broder, *On the resemblance and
containment of documents*, 1997). MinHash estimates it; here it is computed: the sets of one batch make a sparse
matrix, those they are compared with another, and the product is the sizes of all intersections. An n-gram is kept as
24 bits of its hash (feature hashing: Weinberger et al., 2009), so two different ones are taken for one in 16 million
cases.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import sparse

LENGTH = 5
"""Characters of an n-gram."""
THRESHOLD = 0.65
"""From this Jaccard similarity on, two texts are nearly the same."""
TWICE_THRESHOLD = 0.75
"""The same between two validation documents, where a false alarm only costs a document, and a miss leaks nothing."""
NUMBERS_THRESHOLD = 0.95
"""The same, where the numbers in them differ: other numbers in the same words make another problem."""
FIELD_THRESHOLD = 0.3
"""What each single field must reach: one dialogue with two different replies is two documents."""
SHORTEST = 40
"""Characters (a Chinese one counts twice) that both texts must have; short texts give unreliable
similarity."""
RARE_SHARE, RARE_COUNT = 0.01, 6
"""An n-gram in more than 1 % of the documents, and in more than six, is wording they share and says nothing."""
FEWEST = 20
"""N-grams that must remain when shared wording is left out."""

_BUCKETS = 1 << 24
_WIDE = (
    "\u1100-\u115f\u2e80-\u303e\u3041-\u33ff\u3400-\u4dbf\u4e00-\ua4cf\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
)
_IS_WIDE = re.compile(f"[{_WIDE}]")
# The patterns begin with a class of few characters, which `re` finds fast; what must stand before it comes last.
_SPACE_AT_WIDE = re.compile(rf"\s(?=[{_WIDE}])|\s(?<=[{_WIDE}].)")
_APOSTROPHE = re.compile(r"['’ʼ](?=\w)(?<=\w.)")
_THOUSANDS = re.compile(r",(?=\d{3}(?!\d))(?<=\d,)")
_SIGN = re.compile(r"[.,:](?=\d)|[-*/](?=\s?[\w(\[.-])|%|!(?==)")
_PARKED = {sign: chr(0xE000 + number) for number, sign in enumerate("-*/:.,%!")}  # private use, no punctuation
_PUNCTUATION = re.compile(r"[^\w\s\ue000-\ue007+<=>^$|~×÷√∞≈≠≤≥\U00010000-\U0010ffff\u2190-\u2bff]+|_+")
_NUMBER = re.compile(r"\d+(?:\ue004\d+)?")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]+")
_SPACE_AT_SIGN = re.compile(r" ?([\ue000-\ue002]) ?")


def normalise(text: str) -> str:
    """Without differences of case, white space, Unicode form and punctuation; signs of arithmetic are kept."""
    found = text.casefold()
    if not found.isascii():
        found = _INVISIBLE.sub("", unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", found).casefold()))
    found = _SIGN.sub(_keep_if_it_calculates, _THOUSANDS.sub("", _APOSTROPHE.sub("", found)))
    found = " ".join(_PUNCTUATION.sub(" ", found).split())
    if not found.isascii():
        found = _SPACE_AT_SIGN.sub(r"\1", _SPACE_AT_WIDE.sub("", found))
    return found or " ".join(text.split())  # nothing but punctuation: as it is


def _keep_if_it_calculates(match: re.Match[str]) -> str:
    """1.5 is not 15, 7 - 2 not 7 / 2, x*y not x/y, -5 not 5, 5% not 5; all other signs are punctuation."""
    text, here, sign = match.string, match.start(), match[0]
    before, after = here - 1, here + 1
    while before >= 0 and text[before].isspace():
        before -= 1
    while after < len(text) - 1 and text[after].isspace():
        after += 1
    left, right = text[before] if before >= 0 else " ", text[after] if after < len(text) else " "
    apart = before < here - 1 or before < 0
    if sign in ".,:":
        keep = apart if sign == "." and not left.isdigit() else left.isdigit() and not apart
    elif sign == "-":
        between = (left.isdigit() or left in ")]") and (right.isdigit() or right in "([.-")
        negative = right.isdigit() and after == here + 1 and (apart or left in "([=<>+*/,:")
        letters = left.isalpha() and right.isalpha() and _alone(text, before) and _alone(text, after)
        keep = between or negative or letters
    elif sign in "*/":
        keep = (left.isalnum() or left in ")]") and (right.isalnum() or right in "([")
    else:
        keep = sign == "!" or left.isdigit()
    return _PARKED[sign] if keep else " "


def _alone(text: str, place: int) -> bool:
    """Whether the letter there is a word of its own."""
    return not text[max(place - 1, 0) : place].isalnum() and not text[place + 1 : place + 2].isalnum()


def grams(text: str) -> npt.NDArray[np.int32]:
    """The buckets of the character 5-grams of a normalised text, ascending, each once; a shorter text is one n-gram."""
    if not text:
        return np.empty(0, dtype=np.int32)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    length = min(LENGTH, len(codes))
    count = len(codes) - length + 1
    # A polynomial in the characters modulo 2**64 (wrapping is meant), then mixed as MurmurHash3 does at its end.
    value = np.zeros(count, dtype=np.uint64)
    for place in range(length):
        value = value * np.uint64(0x9E3779B97F4A7C15) + codes[place : place + count]
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xFF51AFD7ED558CCD)
    value ^= value >> np.uint64(33)
    return np.unique((value >> np.uint64(40)).astype(np.int32))


@dataclass(frozen=True, eq=False)
class DocumentText:
    """A document's own fields, normalised; `prompt` is the digest of the text that shows them, case and space aside."""

    fields: tuple[str, ...]
    prompt: bytes

    @classmethod
    def of(cls, fields: Sequence[str], prompt: str) -> DocumentText:
        """Normalise."""
        plain = " ".join(prompt.casefold().split())
        digest = hashlib.sha256(plain.encode("utf-8", "surrogatepass")).digest()
        return cls(tuple(map(normalise, fields)), digest)

    @cached_property
    def grams(self) -> npt.NDArray[np.int32]:
        """Those of all fields; none crosses from one field to another."""
        parts = [grams(one) for one in self.fields]
        return parts[0] if len(parts) == 1 else np.unique(np.concatenate(parts))

    @cached_property
    def numbers(self) -> Counter[str]:
        """How often each number stands in it."""
        return Counter(number for one in self.fields for number in _NUMBER.findall(one))

    @cached_property
    def width(self) -> int:
        """Characters, wide ones counted twice."""
        return sum(len(one) + len(_IS_WIDE.findall(one)) for one in self.fields)

    def equals(self, other: DocumentText) -> bool:
        """The same fields, or the same prompt."""
        return self.fields == other.fields or self.prompt == other.prompt

    def same_fields(self, other: DocumentText) -> bool:
        """Whether no field is another one altogether."""
        return all(
            mine == theirs or jaccard(grams(mine), grams(theirs)) >= FIELD_THRESHOLD
            for mine, theirs in zip(self.fields, other.fields, strict=True)
        )


def jaccard(one: npt.NDArray[np.int32], other: npt.NDArray[np.int32]) -> float:
    """Size of the intersection over that of the union, of ascending arrays without repeats; 1 of two empty ones."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    union = len(one) + len(other) - shared
    return shared / union if union else 1.0


@dataclass(frozen=True)
class Match:
    """A text, by its position in an `Index`, and its similarity to the one asked about; 1 where they are equal."""

    position: int
    similarity: float
    equal: bool = False


@dataclass
class Wording:
    """Which n-grams the documents share: counted once over texts that do not depend on how many are drawn."""

    counts: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(_BUCKETS, dtype=np.int32))
    documents: int = 0
    _seen: set[tuple[str, ...]] = field(default_factory=set)

    def count(self, texts: Iterable[DocumentText]) -> None:
        """Take these documents into account; of equal ones the first, since copies make no shared wording."""
        for text in texts:
            if text.fields not in self._seen:
                self._seen.add(text.fields)
                self.counts[text.grams] += 1  # no bucket stands twice in it
                self.documents += 1

    def rare(self, text: DocumentText) -> npt.NDArray[np.int32]:
        """The n-grams of a text that are not shared wording."""
        return text.grams[self.counts[text.grams] <= max(RARE_COUNT, RARE_SHARE * self.documents)]


class Index:
    """Texts that others are compared with; a text's position is the number of those added before it."""

    def __init__(self, texts: Iterable[DocumentText], wording: Wording, threshold: float = THRESHOLD) -> None:
        self._wording = wording
        self._threshold = threshold
        self._texts: list[DocumentText] = []
        self._rare: list[npt.NDArray[np.int32]] = []
        self._by_fields: dict[tuple[str, ...], int] = {}
        self._by_prompt: dict[bytes, int] = {}
        for text in texts:
            self.add(text)

    def add(self, text: DocumentText) -> None:
        """Compare with this one too."""
        self._by_fields.setdefault(text.fields, len(self._texts))
        self._by_prompt.setdefault(text.prompt, len(self._texts))
        self._texts.append(text)
        self._rare.append(self._wording.rare(text))

    def equal(self, query: DocumentText) -> Match | None:
        """The first text that equals this one."""
        position = self._by_fields.get(query.fields, self._by_prompt.get(query.prompt))
        return None if position is None else Match(position, 1.0, equal=True)

    def near(self, queries: Sequence[DocumentText]) -> list[list[Match]]:
        """For each query the texts that are nearly the same, the most similar first (those equal are among them)."""
        found: list[list[Match]] = [[] for _ in queries]
        rare = [self._wording.rare(query) for query in queries]
        if not any(map(len, rare)) or not self._texts:
            return found
        # Columns are the n-grams of the queries only, so of the texts no more is copied than can meet.
        vocabulary = np.unique(np.concatenate(rare))
        column = np.full(_BUCKETS, -1, dtype=np.int32)
        column[vocabulary] = np.arange(len(vocabulary), dtype=np.int32)
        mine = _matrix([column[one] for one in rare], len(vocabulary))
        theirs = _matrix([(hit := column[one])[hit >= 0] for one in self._rare], len(vocabulary))
        shared = (mine @ theirs.T).tocoo()  # (queries, texts): sizes of the intersections
        sizes, others = np.array([len(one) for one in rare]), np.array([len(one) for one in self._rare])
        similarity = shared.data / (sizes[shared.row] + others[shared.col] - shared.data)
        enough = (np.minimum(sizes[shared.row], others[shared.col]) >= FEWEST) & (similarity >= self._threshold)
        for row, position, value in zip(
            shared.row[enough].tolist(), shared.col[enough].tolist(), similarity[enough].tolist(), strict=True
        ):
            if _same_problem(queries[row], self._texts[position], value):
                found[row].append(Match(position, value))
        return [sorted(matches, key=lambda match: (-match.similarity, match.position)) for matches in found]

    def matches(self, queries: Sequence[DocumentText]) -> list[Match | None]:
        """For each query the text it equals, else the most similar of those it nearly equals, else None."""
        return [
            self.equal(query) or next(iter(near), None) for query, near in zip(queries, self.near(queries), strict=True)
        ]


def alike(one: DocumentText, other: DocumentText, wording: Wording) -> bool:
    """Whether two texts are equal or nearly so, as an `Index` says it."""
    if one.equals(other):
        return True
    mine, theirs = wording.rare(one), wording.rare(other)
    similarity = jaccard(mine, theirs)
    enough = min(len(mine), len(theirs)) >= FEWEST and similarity >= THRESHOLD
    return enough and _same_problem(one, other, similarity)


def _same_problem(one: DocumentText, other: DocumentText, similarity: float) -> bool:
    """What must hold beside the similarity as a whole."""
    if min(one.width, other.width) < SHORTEST:
        return False
    if similarity < NUMBERS_THRESHOLD and one.numbers != other.numbers:
        return False
    return one.same_fields(other)


def _matrix(rows: Sequence[npt.NDArray[np.int32]], columns: int) -> sparse.csr_array:
    """Ones at the columns of each row. Shape: (rows, columns)."""
    ends = np.cumsum([0, *map(len, rows)])
    indices = np.concatenate(rows) if len(rows) else np.empty(0, dtype=np.int32)
    return sparse.csr_array((np.ones(len(indices), dtype=np.int32), indices, ends), shape=(len(rows), columns))
