"""The E-Commerce Dialogue Corpus: the authors' files, a balanced choice of them, and the scores."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import ROW_SUFFIXES, read_lines, read_rows
from lm_eval_lora_drop.metrics import data
from lm_eval_lora_drop.metrics.labels import is_one_word, read_label
from lm_eval_lora_drop.metrics.shape import shape

# Between two Latin letters or digits a space separates words; everywhere else it is the corpus's segmentation.
_SEGMENTATION = re.compile(r"(?<![0-9A-Za-z])\s+|\s+(?![0-9A-Za-z])")


LABELS = {"chinese": ["否", "是"], "english": ["No", "Yes"]}
"""How the labels 0 and 1 are written: in the dialogue's language, or as in the paper."""


def load(labels: str = "chinese", **kwargs: Any) -> Any:
    """The splits, unsegmented, with as many suitable as unsuitable responses; `words` are the two labels.

    Raises:
        ArgumentError: `labels` is none of LABELS, or the files cannot be read.
    """
    if labels not in LABELS:
        raise ArgumentError(
            f"labels must be one of {', '.join(LABELS)}, got {labels!r}. E.g. --metadata "
            """'{"data_dir": "...", "labels": "english"}'."""
        )
    loaded = data.load(**kwargs, parse=read_dialogues, suffixes=(*ROW_SUFFIXES, ".txt", ".txt.gz", ""))
    chosen = {name: balance(rows) for name, rows in loaded.items()}
    return type(loaded)({name: rows.add_column("words", [LABELS[labels]] * len(rows)) for name, rows in chosen.items()})


def read_dialogues(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of JSON Lines, or of the authors' `label<TAB>utterance<TAB>...<TAB>response`."""
    if ".jsonl" in path.suffixes:
        rows = read_rows(path)
    else:
        rows = ((number, parse_dialogue(line, f"{path}, line {number}")) for number, line in read_lines(path))
    for number, row in rows:
        where = f"{path}, line {number}"
        if row.get("label") not in (0, 1):
            raise ArgumentError(f"{where}: the label must be 0 or 1, not {row.get('label')!r}.")
        if not isinstance(row.get("utterances"), list) or not all(isinstance(one, str) for one in row["utterances"]):
            raise ArgumentError(f"{where}: 'utterances' must be a list of strings.")
        yield number, row


def parse_dialogue(line: str, where: str) -> dict[str, Any]:
    """One line of the authors' files."""
    cells = line.split("\t")
    if len(cells) < 3 or cells[0].strip() not in ("0", "1"):
        raise ArgumentError(
            f"{where}: must be label (0 or 1), one or more utterances and a response, separated by tabs; "
            f"it has {len(cells)} cells and begins with {cells[0][:20]!r}."
        )
    return {"label": int(cells[0]), "utterances": cells[1:-1], "response": cells[-1]}


def balance(rows: Any) -> Any:
    """As many of each label, dialogue by dialogue; which of several is drawn depends on its content only."""
    dialogues: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        dialogues.setdefault(tuple(row["utterances"]), []).append(row)
    chosen = []
    for candidates in dialogues.values():
        by_label = [[row for row in candidates if row["label"] == label] for label in (1, 0)]
        number = min(map(len, by_label))
        chosen += [row for one in by_label for row in data.draw(one, number)]
    if not chosen:
        raise ArgumentError(
            "E-Commerce: no dialogue has both a suitable and an unsuitable response; is a label missing?"
        )
    return type(rows).from_list([unsegment(row) for row in chosen])


def unsegment(row: dict[str, Any]) -> dict[str, Any]:
    """The row without the spaces between Chinese words."""
    return {
        "label": row["label"],
        "utterances": [_SEGMENTATION.sub("", utterance) for utterance in row["utterances"]],
        "response": _SEGMENTATION.sub("", row["response"]),
    }


def process_results(doc: dict[str, Any], results: list[str], *, max_gen_toks: int) -> dict[str, float]:
    """Whether the label read from the text is right, whether one can be read at all, and the shape of the output."""
    prediction = results[0].strip()
    label = read_label(prediction)
    return {
        "acc": float(label == doc["label"]),
        "one_word": float(is_one_word(prediction)),
        "unread": float(label is None),
        **shape(prediction, max_gen_toks, chinese=True),
    }
