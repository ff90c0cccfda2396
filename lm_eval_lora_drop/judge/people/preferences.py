"""People's preferences on few pairs of outputs joined to a panel's on many: win rate, and agreement with judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import read_text
from lm_eval_lora_drop.judge.pairwise import majority_of
from lm_eval_lora_drop.judge.people import FEWEST, Floats, filled, powered_share
from lm_eval_lora_drop.judge.score import agreement
from lm_eval_lora_drop.record.plain import plain
from lm_eval_lora_drop.record.runs import json_object

Outputs = tuple[str, str]
"""The digests of a pair's outputs, in the order of the systems."""


def read_choices(path: Path) -> dict[int, tuple[Outputs, dict[str, int | None]]]:
    """By document, the outputs and each judge's choice: 1 the first system's, -1 the second's, 0 a tie, None unknown.

    Raises:
        ArgumentError: `lora-drop judge pairwise --json` did not write the file.
    """
    data = json_object(read_text(path, "what `lora-drop judge pairwise --json` wrote", most=1 << 28)) or {}
    found: dict[int, tuple[Outputs, dict[str, int | None]]] = {}
    try:
        for row in data["choices"]:
            first, second = map(str, row["outputs"])
            choices = {str(name): choice for name, choice in row["judges"].items()}
            if not choices or not all(choice in (1, 0, -1, None) for choice in choices.values()):
                raise ValueError("a choice")
            found[int(row["doc_id"])] = ((first, second), choices)
        if len({tuple(choices) for _, choices in found.values()}) != 1:
            raise ValueError("no choices, or other judges on other documents")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArgumentError(
            f"{path} holds no choices of judges ({type(error).__name__}: {error}). Write it with: "
            "lora-drop judge pairwise A B --panel ... --json FILE."
        ) from error
    return found


def joined(
    votes: Sequence[Sequence[int | None]],
    documents: Sequence[tuple[int, Outputs]],
    choices: Mapping[int, tuple[Outputs, Mapping[str, int | None]]],
) -> dict[str, Any] | None:
    """The first system's win rate on all pairs of differing outputs, in percent, and how far each judge follows people;
    None where people voted on fewer than `FEWEST` pairs.

    Args:
        votes: one row per rater, one vote per pair: 1, -1, 0 or None as in `read_choices`.
        documents: `doc_id` and outputs of each pair of the sheets.
        choices: of the judges, from `read_choices`.

    Raises:
        ArgumentError: a pair of the sheets that was not judged.
    """
    names = list(next(iter(choices.values()))[1])
    # The judges may have been given the systems in the other order.
    turned = all(choices.get(document, (None,))[0] == outputs[::-1] for document, outputs in documents)
    for document, outputs in documents:
        if not turned and choices.get(document, (None,))[0] != outputs:
            raise ArgumentError(
                f"document {document} of the sheets was judged with other outputs or not at all. Compare the runs that "
                "the sheets were written for: lora-drop judge pairwise A B --json FILE."
            )
    by_document = {document: _scores(row, turned=turned) for document, (_, row) in choices.items()}
    panel = dict(zip(by_document, filled(np.array(list(by_document.values())).T), strict=True))
    columns = [[vote for vote in column if vote is not None] for column in zip(*votes, strict=True)]
    human = {d: 50.0 + 50.0 * sum(c) / len(c) for (d, _), c in zip(documents, columns, strict=True) if c}
    if len(human) < FEWEST:
        return None
    said = np.array([panel[document] for document in human])
    rest = np.array([value for document, value in panel.items() if document not in human])
    found = powered_share(np.array(list(human.values())), said, rest)
    judges = {}
    for place, name in enumerate(names):
        theirs = [_sign(by_document[document][place]) for document, _ in documents]
        people = [majority_of(column) for column in columns]
        both = [pair for pair in zip(people, theirs, strict=True) if None not in pair]
        judges[name] = {
            "pairs": len(both),
            "same": sum(one == two for one, two in both),
            "agreement": plain(agreement([people, theirs], "nominal")),
        }
    return {**asdict(found), "judges": judges}


def _scores(choices: Mapping[str, int | None], *, turned: bool) -> Floats:
    """In percent for the first system, NaN for None."""
    sign = -50.0 if turned else 50.0
    return np.array([np.nan if choice is None else 50.0 + sign * choice for choice in choices.values()])


def _sign(score: float) -> int | None:
    return None if np.isnan(score) else int(np.sign(score - 50.0))
