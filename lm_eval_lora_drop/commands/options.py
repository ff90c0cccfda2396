"""What options of several commands are read by, and how commands write and warn."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.files import write_atomically
from lm_eval_lora_drop.text import visible


def natural(text: str) -> int:
    """An integer >= 0, for argparse."""
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to 999999999, got {text[:80]!r}")
    return int(text)


def positive(text: str) -> int:
    """An integer >= 1, for argparse."""
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer from 1 to 999999999, got {text[:80]!r}")
    return int(text)


def json_object(text: str) -> dict[str, Any]:
    """A JSON object, for argparse."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f'must be JSON, e.g. \'{{"data_dir": "data"}}\', got {text[:80]!r} ({error})'
        ) from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {text[:80]!r}")
    return value


def warn(issues: Iterable[object]) -> None:
    """What was wrong with the files, once each, on standard error."""
    for issue in dict.fromkeys(map(str, issues)):
        print(f"warning: {visible(issue)}", file=sys.stderr)


def write(path: Path, text: str) -> None:
    """Write a text file as a whole or not at all, making its folder.

    Raises:
        ArgumentError: the file cannot be written.
    """
    write_atomically(path, text)
