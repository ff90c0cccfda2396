"""Blinded sheets for human raters, as CSV and as a form in one HTML file, and what the filled ones say.

The paper (arXiv 2503.23360) lets three people compare 30 pairs by four criteria; `CRITERIA` are these four, each with a
sentence of our own.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import read_text, write_atomically
from lm_eval_lora_drop.judge.pairwise import Pair, majority_of, rates
from lm_eval_lora_drop.judge.people.preferences import joined, read_choices
from lm_eval_lora_drop.judge.score import agreement
from lm_eval_lora_drop.record.plain import plain

CRITERIA = {
    "fluency": "is grammatical and reads well",
    "accuracy": "says nothing that the source does not say",
    "readability": "is clear and easy to follow",
    "completeness": "leaves nothing important out",
}
OVERALL = "overall"
COLUMNS = (*CRITERIA, OVERALL)
_TEXTS = ("source", "reference", "text_1", "text_2")


def write_sheets(pairs: Sequence[Pair], labels: tuple[str, str], folder: Path, number: int, seed: int) -> list[Path]:
    """Write `sheet.csv`, `sheet.html` and `key.json` for `number` random pairs of differing outputs.

    The key says which text is whose; raters must not get it.

    Raises:
        ArgumentError: fewer differing pairs than asked for, or the folder cannot be written.
    """
    differing = [pair for pair in pairs if pair.first != pair.second]
    if not 0 < number <= len(differing):
        raise ArgumentError(
            f"--number must be from 1 to {len(differing)}, the documents on which the systems differ; got {number}."
        )
    draw = random.Random(seed)
    rows, key = [], []
    for place, pair in enumerate(draw.sample(differing, number), start=1):
        swapped = draw.random() < 0.5
        first, second = (pair.second, pair.first) if swapped else (pair.first, pair.second)
        rows.append(
            {"pair": str(place), **dict(zip(_TEXTS, (pair.source, pair.reference, first, second), strict=True))}
        )
        key.append({"pair": place, "doc_id": pair.doc_id, "swapped": swapped, "outputs": pair.outputs})
    # The letter keeps a spreadsheet from reading an identity like 12345678e012 as a number.
    sheet = "s" + hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:12]
    paths = [folder / name for name in ("sheet.csv", "sheet.html", "key.json")]
    # A byte order mark, or Excel reads Chinese as Latin letters.
    write_atomically(paths[0], "\ufeff" + _csv(rows, sheet))
    write_atomically(paths[1], _html(rows, sheet))
    key_file = {"sheet": sheet, "systems": labels, "seed": seed, "pairs": key}
    write_atomically(paths[2], json.dumps(key_file, indent=2, ensure_ascii=False))
    return paths


def collect(key_path: Path, sheets: Sequence[Path], judged: Path | None = None) -> dict[str, Any]:
    """Win rate of the first system and agreement between raters, per criterion and overall.

    Win rates count a pair's raters one by one; the sign test is of the pairs, each decided by the majority of its
    raters, since votes on one pair are not independent.
    `agreement` is Krippendorff's alpha (nominal), None with a single rater. With `judged`, a panel's preferences, each
    criterion has `with_judges`, from `preferences.joined`.

    Raises:
        ArgumentError: no key, a sheet of another key or without its columns or rows, a value that is none of 1, 2,
            tie or empty.
    """
    try:
        key = json.loads(read_text(key_path, "key.json of `lora-drop judge sheet`"))
        swapped = {str(entry["pair"]): bool(entry["swapped"]) for entry in key["pairs"]}
        documents = [(int(entry["doc_id"]), (entry["outputs"][0], entry["outputs"][1])) for entry in key["pairs"]]
        systems, sheet = list(key["systems"]), key["sheet"]
    except ArgumentError:
        raise
    except (LookupError, ValueError, TypeError, RecursionError) as error:
        raise ArgumentError(
            f"{key_path} must be key.json of `lora-drop judge sheet`, with a sheet, its systems and pairs; it has none "
            "of them that can be read. Name the file that was written beside the sheet."
        ) from error
    raters = [_read(path, sheet, swapped) for path in sheets]
    choices = read_choices(judged) if judged else None
    found: dict[str, Any] = {"systems": systems, "pairs": len(swapped), "raters": len(raters), "criteria": {}}
    for column in COLUMNS:
        votes = [[rater.get(pair, {}).get(column) for pair in swapped] for rater in raters]
        flat = [vote for row in votes for vote in row if vote is not None]
        majority = [majority_of(column) for column in zip(*votes, strict=True)]
        found["criteria"][column] = {
            **rates(flat.count(1), flat.count(-1), flat.count(0)),
            "sign_test_p": rates(*(majority.count(vote) for vote in (1, -1, 0)))["sign_test_p"],
            "missing": len(raters) * len(swapped) - len(flat),
            "agreement": plain(agreement(votes, "nominal")),
            **({"with_judges": joined(votes, documents, choices)} if choices else {}),
        }
    return found


def _read(path: Path, sheet: str, swapped: dict[str, bool]) -> dict[str, dict[str, int | None]]:
    """Per pair and column: 1 for the first system, -1 for the second, 0 for a tie, None where nothing was said."""
    try:
        text = read_text(path, "a filled sheet")
        dialect = ";" if text.split("\n", 1)[0].count(";") > text.split("\n", 1)[0].count(",") else ","
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=dialect)
        rows, header = list(reader), reader.fieldnames or ()
    except csv.Error as error:
        raise ArgumentError(f"{path} cannot be read as CSV in UTF-8 ({error}).") from error
    gone = [name for name in ("sheet", "pair", *COLUMNS) if name not in header]
    if gone or not rows:
        what = f"the columns {', '.join(gone)} are gone" if gone else "there are no rows"
        raise ArgumentError(f"{path} is no filled sheet: {what}. Begin again with the sheet.csv that was written.")
    found: dict[str, dict[str, int | None]] = {}
    for line, row in enumerate(rows, start=2):
        if row.get("sheet") != sheet:
            raise ArgumentError(f"{path}, row {line}: belongs to sheet {row.get('sheet')!r}, the key to {sheet!r}.")
        pair = str(row.get("pair") or "").strip()
        if pair not in swapped or pair in found:
            raise ArgumentError(f"{path}, row {line}: pair {pair!r} is not in the key, or is there twice.")
        found[pair] = {
            column: _vote(row.get(column), swapped[pair], f"{path}, row {line}, {column}") for column in COLUMNS
        }
    return found


def _vote(said: str | None, swapped: bool, where: str) -> int | None:
    value = (said or "").strip().lower()
    if value not in ("", "1", "2", "tie"):
        raise ArgumentError(f"{where}: must be 1, 2, tie or empty; got {said!r}.")
    vote = {"": None, "1": 1, "2": -1, "tie": 0}[value]
    return vote if vote is None or not swapped else -vote


def _csv(rows: Sequence[dict[str, str]], sheet: str) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(["sheet", "pair", *_TEXTS, *COLUMNS])
    for row in rows:
        writer.writerow([sheet, row["pair"], *(_plain_cell(row[name]) for name in _TEXTS), *("" for _ in COLUMNS)])
    return out.getvalue()


def _plain_cell(text: str) -> str:
    """A spreadsheet would run a model's "=..." as a formula; the apostrophe makes it text."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _html(rows: Sequence[dict[str, str]], sheet: str) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lm_eval_lora_drop.judge.people", "templates"), autoescape=True, trim_blocks=True
    )
    # The page runs this script and no other: what a model wrote would not run even if it were not escaped.
    script = (Path(__file__).parent / "templates" / "sheet.js").read_text(encoding="utf-8")
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("sheet.html").render(
        rows=rows, sheet=sheet, criteria=CRITERIA, columns=COLUMNS, script=script, script_hash=script_hash
    )
