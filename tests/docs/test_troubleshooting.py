"""The messages that docs/troubleshooting.md quotes are messages that the code prints."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACEHOLDERS = re.compile(r"\.\.\.|=\.\.\.|\b[nN]\b|\b[A-Z]{4,}\b|0\.xx")
"""What stands for a value in a quoted message."""
OF_THE_HARNESS = {"Model 'hf-lora-drop'", "not found"}


def printed():
    """Every text in the package, a formatted value as a space."""
    for path in (ROOT / "lm_eval_lora_drop").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (one.value if isinstance(one, ast.Constant) else " " for one in node.values)
                yield re.sub(r"\s+", " ", "".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"\s+", " ", node.value)


def test_quoted_messages_are_printed():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = [text for row in re.findall(r"^\| (`.*?) \|", page, re.M) for text in re.findall(r"`([^`]+)`", row)]
    known = list(printed())
    pieces = [piece.strip(" ()=") for text in quoted for piece in PLACEHOLDERS.split(text)]
    missing = [piece for piece in pieces if len(piece) > 6 and not any(piece in text for text in known)]
    assert len(quoted) > 40
    assert set(missing) == OF_THE_HARNESS
