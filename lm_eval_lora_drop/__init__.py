"""Which layers of my LoRA adapter do I need? A plugin for EleutherAI's lm-evaluation-harness.

The harness finds the model types and the tasks by itself (see `harness.hooks`). In Python and in notebooks:

    import lm_eval_lora_drop as lora_drop

    result = lora_drop.sweep("org/base", "./my-adapter", "gsm8k")   # or a loaded PeftModel, without the adapter
    result = lora_drop.read("out/")                                 # or what lm_eval has written
    print(lora_drop.compare("out/full", "out/k24"))                 # paired tests; also stability, report

Importing the package imports nothing else: a name is fetched when it is first used.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval_lora_drop.api import Result as Result
    from lm_eval_lora_drop.api import TaskResult as TaskResult
    from lm_eval_lora_drop.api import compare as compare
    from lm_eval_lora_drop.api import read as read
    from lm_eval_lora_drop.api import report as report
    from lm_eval_lora_drop.api import stability as stability
    from lm_eval_lora_drop.api import sweep as sweep
    from lm_eval_lora_drop.errors import AdapterError as AdapterError
    from lm_eval_lora_drop.errors import ArgumentError as ArgumentError
    from lm_eval_lora_drop.errors import LoraDropError as LoraDropError
    from lm_eval_lora_drop.variant import Variant as Variant

    __version__: str

_HOMES = {
    **dict.fromkeys(("sweep", "read", "compare", "stability", "report"), "api"),
    "Result": "api",
    "TaskResult": "api",
    "Variant": "variant",
    "LoraDropError": "errors",
    "ArgumentError": "errors",
    "AdapterError": "errors",
}
__all__ = [
    "AdapterError",
    "ArgumentError",
    "LoraDropError",
    "Result",
    "TaskResult",
    "Variant",
    "__version__",
    "compare",
    "read",
    "report",
    "stability",
    "sweep",
]


class _Package(ModuleType):
    """The package, in which `sweep` stays the function: Python would replace it by the room `sweep/`, once imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"lm_eval_lora_drop.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lm-eval-lora-drop")
    except PackageNotFoundError:  # a checkout on PYTHONPATH, never installed
        return "0+unknown"
