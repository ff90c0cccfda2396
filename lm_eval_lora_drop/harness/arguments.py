"""`model_args` as typed: of two values of a name lm-eval keeps the last, and it fails on a name that it gives too."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.text import shown


def check_given_once(typed: Sequence[str], model_args: Mapping[str, Any], others: Mapping[str, Any]) -> None:
    """Refuse a name that is given twice.

    Args:
        typed: texts `name=value,name=value`.
        model_args: what lm-eval made of them.
        others: what lm-eval hands the model class besides: `--batch_size`, `--device`.

    Raises:
        ArgumentError: naming both values.
    """
    seen: dict[str, str] = {}
    for name, value in _pairs(typed):
        if name in seen and seen[name] != value:
            raise ArgumentError(
                f"model_args gives {shown(name)} twice, {shown(seen[name])} and {shown(value)}. Only one can hold: "
                f"leave one of them out."
            )
        seen[name] = value
    for name in model_args:
        if others.get(name) is not None:
            raise ArgumentError(
                f"model_args gives {name}={shown(model_args[name])}, and lm_eval gives {name}={shown(others[name])} by "
                f"its own option. Leave {name} out of model_args and use --{name} {shown(model_args[name])}."
            )


def typed_model_args() -> list[str]:
    """The values of `--model_args` on the command line of the running `lm_eval`; none in another program."""
    if "lm_eval._cli" not in sys.modules:
        return []
    found: list[str] = []
    taking = False
    for word in sys.argv[1:]:
        option, _, value = word.partition("=")
        if option in ("--model_args", "-a"):
            found, taking = [value] if value else [], True  # a second option replaces the first
        elif word.startswith("-"):
            taking = False
        elif taking:
            found.append(word)
    return found


def _pairs(typed: Sequence[str]) -> Iterator[tuple[str, str]]:
    from lm_eval._cli.utils import split_top_level

    for text in typed:
        if text.lstrip().startswith("{"):
            with contextlib.suppress(ValueError):  # lm-eval has refused it, if it is no JSON
                yield from ((str(name), shown(value)) for name, value in json.loads(text, object_pairs_hook=list))
        else:
            for part in split_top_level(text):
                name, mark, value = part.partition("=")
                if mark:
                    yield name.strip(), value.strip()
