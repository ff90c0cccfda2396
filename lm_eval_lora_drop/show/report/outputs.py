"""What outputs look like where a system loses: the error analysis of the paper's section 6.7 (arXiv 2503.23360).

Dropping layers tends to make outputs longer. A longer output that still contains the other system's answer lost its
point by the metric, not by the content; this says how often that is so.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval_lora_drop.record.runs import Sample

# Words, single signs and Chinese characters, each with the blanks after it: fine enough to see a change, and fast.
_TOKEN = re.compile(r"[\u3400-\u9fff\u3000-\u303f\uff00-\uffef]\s*|\w+\s*|[^\w\s]\s*|\s+")
_LONGEST_MARKED = 4_000
"""Characters: difflib takes quadratic time, and nobody reads marks in a text of this length."""


@dataclass(frozen=True)
class ErrorAnalysis:
    """Documents on which `other` scores lower than the baseline, worst first, and what its outputs look like there.

    `contain` is the share whose output contains the baseline's, blanks and case aside; `length_ratio` the characters of
    `other` per character of the baseline over these documents, `length_ratio_all` over all.
    """

    other: str
    metric: str
    documents: int
    worse: int
    contain: float | None
    length_ratio: float | None
    length_ratio_all: float | None
    worst: tuple[dict[str, Any], ...]


def analyse(
    other: str,
    metric: str,
    baseline: Sequence[Sample],
    others: Sequence[Sample],
    losses: Sequence[float],
    *,
    show: int,
) -> ErrorAnalysis:
    """Compare the outputs of two systems, document by document.

    Args:
        other: label of the second system.
        metric: what `losses` were measured in.
        baseline, others: the samples of both, the same documents in the same order.
        losses: how much lower `others` scores on each; above 0 is worse.
        show: how many documents to list with their texts.
    """
    pairs = list(zip(baseline, others, losses, strict=True))
    worse = sorted((pair for pair in pairs if pair[2] > 0), key=lambda pair: (-pair[2], pair[0].doc_id))
    return ErrorAnalysis(
        other=other,
        metric=metric,
        documents=len(pairs),
        worse=len(worse),
        contain=sum(contains(b.raw, a.raw) for a, b, _ in worse) / len(worse) if worse else None,
        length_ratio=_length_ratio([(a.raw, b.raw) for a, b, _ in worse]),
        length_ratio_all=_length_ratio([(a.raw, b.raw) for a, b, _ in pairs]),
        worst=tuple(
            {"doc_id": a.doc_id, "loss": loss, "target": a.target, "baseline": a.raw, "other": b.raw}
            for a, b, loss in worse[:show]
        ),
    )


def scored_texts(samples: Sequence[Sample], metric: str) -> tuple[list[str], list[str]] | None:
    """Hypotheses and references that a corpus metric saw, None where they are no plain texts.

    lm-eval's built-in metrics log the pair (reference, hypothesis) itself; ours log counts, and score the first
    filtered output against the target, both without surrounding blanks.
    """
    hypotheses, references = [], []
    for sample in samples:
        item = sample.metrics.get(metric)
        if isinstance(item, list) and len(item) == 2 and all(isinstance(part, str) for part in item):
            reference, hypothesis = item
        elif sample.outputs and isinstance(sample.outputs[0], str):
            reference, hypothesis = sample.target.strip(), sample.outputs[0].strip()
        else:
            return None
        references.append(reference)
        hypotheses.append(hypothesis)
    return hypotheses, references


def contains(longer: str, shorter: str) -> bool:
    """Whether `shorter` (not empty) stands in `longer`, blanks and case aside."""
    wanted = " ".join(shorter.split()).casefold()
    return bool(wanted) and wanted in " ".join(longer.split()).casefold()


def _length_ratio(texts: Sequence[tuple[str, str]]) -> float | None:
    baseline = sum(len(a.strip()) for a, _ in texts)
    return sum(len(b.strip()) for _, b in texts) / baseline if baseline else None


def marked(one: str, other: str) -> tuple[list[tuple[bool, str]], list[tuple[bool, str]]]:
    """Both texts as pieces `(differs, text)`, word by word; pieces joined give the text back.

    Texts of more than 4,000 characters come unmarked, as one piece.
    """
    if max(len(one), len(other)) > _LONGEST_MARKED:
        return [(one != other, one)], [(one != other, other)]
    left, right = _TOKEN.findall(one), _TOKEN.findall(other)
    # Blanks alone are no difference worth a mark.
    matcher = difflib.SequenceMatcher(None, [t.strip() for t in left], [t.strip() for t in right], autojunk=False)
    pieces: tuple[list[tuple[bool, str]], list[tuple[bool, str]]] = ([], [])
    for operation, left_from, left_to, right_from, right_to in matcher.get_opcodes():
        for side, text in ((0, "".join(left[left_from:left_to])), (1, "".join(right[right_from:right_to]))):
            if text:
                pieces[side].append((operation != "equal", text))
    return pieces
