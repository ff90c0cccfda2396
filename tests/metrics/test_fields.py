"""Scores of JSON answers; the expected values follow from the definitions in `score_fields`."""

from __future__ import annotations

import pytest
from jsonschema import Draft202012Validator

from lm_eval_lora_drop.metrics.fields import parse_json, score_fields

EXPECTED = {"name": "Ana", "quantity": 3, "express": True}
VALIDATOR = Draft202012Validator(
    {
        "type": "object",
        "properties": {"name": {"type": "string"}, "quantity": {"type": "integer"}, "express": {"type": "boolean"}},
        "required": ["name", "quantity", "express"],
        "additionalProperties": False,
    }
)


@pytest.mark.parametrize(
    ("text", "json_valid", "schema_valid", "field_f1"),
    [
        ('{"name": "Ana", "quantity": 3, "express": true}', 1, 1, 1.0),
        ('{\n "express": true, "quantity": 3, "name": "Ana"\n}\n', 1, 1, 1.0),
        ('{"name": "Ana", "quantity": 3, "express": false}', 1, 1, 2 * 2 / 6),
        ('{"name": "Ana", "quantity": "3", "express": true}', 1, 0, 2 * 2 / 6),
        ('{"name": "Ana", "quantity": 3, "express": 1}', 1, 0, 2 * 2 / 6),  # 1 is no boolean
        ('{"name": "Ana", "quantity": 3}', 1, 0, 2 * 2 / 5),
        ('{"name": "Ana", "quantity": 3, "express": true, "note": ""}', 1, 0, 2 * 3 / 7),
        ("{}", 1, 0, 0.0),
        ('["Ana", 3, true]', 1, 0, 0.0),
        ('"Ana"', 1, 0, 0.0),
        ('Sure! {"name": "Ana", "quantity": 3, "express": true}', 0, 0, 0.0),
        ('```json\n{"name": "Ana", "quantity": 3, "express": true}\n```', 0, 0, 0.0),
        ('{"name": "Ana", "quantity": 3, "express": true', 0, 0, 0.0),
        ("{'name': 'Ana'}", 0, 0, 0.0),
        ('{"quantity": NaN}', 0, 0, 0.0),
        ("null", 1, 0, 0.0),
        ("", 0, 0, 0.0),
        ("[" * 100_000, 0, 0, 0.0),
    ],
)
def test_scores(text: str, json_valid: int, schema_valid: int, field_f1: float) -> None:
    """Format and content are judged apart; words around the JSON break the format."""
    scores = score_fields(text, EXPECTED, VALIDATOR)
    assert scores == {"json_valid": json_valid, "schema_valid": schema_valid, "field_f1": pytest.approx(field_f1)}


def test_nothing_but_json_parses() -> None:
    """Python's own extensions of JSON are refused."""
    with pytest.raises(ValueError, match="Infinity is not JSON"):
        parse_json("Infinity")
    assert parse_json("3.5") == 3.5
