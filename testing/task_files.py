"""lm-eval's own task files, ten thousand of them: read once for all tests and processes, or not at all."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock
from lm_eval.tasks import _index

OWN = Path(_index.__file__).parent
Index = dict[str, Any]


def read_once(kept: Path) -> None:
    """From now on this process takes them from the file `kept`, which the first that needs them makes."""

    @functools.cache
    def own() -> Index:
        with FileLock(f"{kept}.lock"):
            if not kept.exists():
                part = kept.with_suffix(".part")  # a test may kill the process that writes
                part.write_bytes(pickle.dumps(build([OWN])))
                part.replace(kept)
            return pickle.loads(kept.read_bytes())

    build = _replace(own)


def leave_out() -> None:
    """From now on this process knows none of them."""
    _replace(dict)


def _replace(own: Callable[[], Index]) -> Callable[..., Index]:
    build: Callable[..., Index] = _index.TaskIndex.build

    def listed(paths: Iterable[Path], **named: Any) -> Index:
        """As lm-eval does it: a later folder overrides an earlier one."""
        found: Index = {}
        for root in paths:
            found |= own() if Path(root) == OWN else build([root], **named)
        return found

    _index.TaskIndex.build = staticmethod(listed)
    return build
