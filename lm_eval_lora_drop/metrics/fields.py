"""Scores a JSON answer against the expected fields: does it parse, does it fit the schema, are the fields right?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator


def parse_json(text: str) -> Any:
    """The value that the whole text stands for; nothing is cut out of surrounding words or code fences.

    Raises `ValueError` where the text is no JSON.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def score_fields(text: str, expected: Mapping[str, Any], validator: Draft202012Validator) -> dict[str, float]:
    """`json_valid`, `schema_valid` and `field_f1`, each 0 to 1.

    `field_f1` is over (field, value) pairs, equal in value and type; a text that is no JSON object scores 0.
    """
    try:
        value = parse_json(text)
    except ValueError:
        return {"json_valid": 0.0, "schema_valid": 0.0, "field_f1": 0.0}
    scores = {"json_valid": 1.0, "schema_valid": 0.0, "field_f1": 0.0}
    if isinstance(value, dict):
        scores["schema_valid"] = float(validator.is_valid(value))
        right = sum(name in value and _same(value[name], wanted) for name, wanted in expected.items())
        scores["field_f1"] = 2 * right / (len(value) + len(expected)) if value or expected else 1.0
    return scores


def _same(one: Any, other: Any) -> bool:
    # In Python True == 1 and 1 == 1.0; in JSON a boolean is no number.
    return type(one) is type(other) and one == other
