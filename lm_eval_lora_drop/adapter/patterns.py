"""The regular expressions of an adapter's configuration, evaluated where they can do no harm.

PEFT reads `rank_pattern`, `alpha_pattern`, a textual `target_modules` and `exclude_modules` as regular expressions.
One of them can run for ever (`(a+)+$`), and Python's `re` cannot be interrupted. So whatever is more than a name is
tried in a process of its own with a limit on its time, before PEFT meets it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lm_eval_lora_drop.errors import AdapterError

CPU_SECONDS = 5
"""What all expressions of one adapter may take; an honest one takes microseconds."""

_WALL_SECONDS = 120
_MEMORY = 1 << 30
# Names, and dots that stand for themselves: no repetition, so no long search.
_HARMLESS = re.compile(r"(?:\w|-|\\?\.)*")
_CHILD = f"""
import json, re, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, ({CPU_SECONDS}, {CPU_SECONDS}))
    resource.setrlimit(resource.RLIMIT_AS, ({_MEMORY}, {_MEMORY}))
except ImportError:
    pass
expressions, names = json.load(sys.stdin)
found = []
for expression in expressions:
    try:
        compiled = re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        sys.exit("%s: %s" % (expression[:80], error))
    found.append([index for index, name in enumerate(names) if compiled.match(name)])
json.dump(found, sys.stdout)
"""


def match_patterns(patterns: Iterable[str], names: Sequence[str], source: str) -> dict[str, frozenset[str]]:
    """For each of PEFT's patterns (`rank_pattern`, `alpha_pattern`) the module names that it is for.

    As peft.utils.other.get_pattern_key has it: the pattern is a whole name, or the end of one after a dot.

    Raises:
        AdapterError: a pattern of the adapter `source` is no regular expression, or takes longer than `CPU_SECONDS`.
    """
    keys = list(patterns)
    found = _match([rf"(.*\.)?({key})$" for key in keys], names, source, all(map(_HARMLESS.fullmatch, keys)))
    return dict(zip(keys, found, strict=True))


def first_pattern(values: Mapping[str, float], matched: Mapping[str, frozenset[str]], module: str) -> float | None:
    """The value that PEFT takes for `module`: that of the first pattern which is for it; None where there is none."""
    return next((value for pattern, value in values.items() if module in matched[pattern]), None)


def check_patterns(config: Mapping[str, Any], names: Sequence[str], source: str) -> None:
    """Try every expression of a configuration on `names`, as PEFT is going to.

    Raises:
        AdapterError: as `match_patterns`.
    """
    match_patterns([*(config.get("rank_pattern") or {}), *(config.get("alpha_pattern") or {})], names, source)
    whole = [value for key in ("target_modules", "exclude_modules") if isinstance(value := config.get(key), str)]
    whole += [rf"(^|.*\.){name}($|\..*)" for name in config.get("modules_to_save") or ()]
    layers = config.get("layers_pattern") or ()
    whole += [rf"(?:^|.*?\.){name}\.(?P<idx>\d+)\." for name in ([layers] if isinstance(layers, str) else layers)]
    texts = [*(config.get("modules_to_save") or ()), *([layers] if isinstance(layers, str) else layers)]
    given = [value for key in ("target_modules", "exclude_modules") if isinstance(value := config.get(key), str)]
    _match(whole, names, source, all(map(_HARMLESS.fullmatch, [*texts, *given])))


def _match(expressions: list[str], names: Sequence[str], source: str, harmless: bool) -> list[frozenset[str]]:
    if harmless:
        return [frozenset(filter(re.compile(expression).match, names)) for expression in expressions]
    asked = json.dumps([expressions, list(names)])
    try:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-I", "-S", "-c", _CHILD],
            input=asked,
            capture_output=True,
            text=True,
            timeout=_WALL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode < 0:
        raise AdapterError(
            f"peft={source}: the regular expressions of its configuration (target_modules, rank_pattern, ...) take "
            f"longer than {CPU_SECONDS} s on the names of the model's modules. Write them without nested repetition, "
            "or name the modules."
        )
    if done.returncode:
        raise AdapterError(
            f"peft={source}: its configuration has a pattern that is not a valid regular expression "
            f"({done.stderr.strip()[:200]}). Correct it."
        )
    return [frozenset(names[index] for index in indices) for indices in json.loads(done.stdout)]
