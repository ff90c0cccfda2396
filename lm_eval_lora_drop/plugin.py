"""Gives the harness our names: the model types and the task folder. The only file that knows how it discovers plugins.

Releases of lm-eval after 0.4.13 read the entry points in `pyproject.toml`. For 0.4.13 the wheel carries a one-line
`.pth` that executes `_startup.py` at interpreter start: it puts a finder on `sys.meta_path` that waits for two
modules of the harness and asks `registering_spec` here for them. Before that nothing of ours is imported.
"""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from lm_eval_lora_drop.files import package_folder

MODEL_TYPES = {
    "hf-lora-drop": "lm_eval_lora_drop.models.hf:LoraDropLM",
    "vllm-lora-drop": "lm_eval_lora_drop.models.vllm:VllmLoraDropLM",
}


def registering_spec(name: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
    """The spec the other finders have for the harness module `name`, made to register us once it has been executed."""
    for finder in sys.meta_path:
        if getattr(finder, "__name__", "") == "_LoraDropFinder":
            continue
        find_spec = getattr(finder, "find_spec", None)
        spec: ModuleSpec | None = find_spec(name, path, target) if find_spec else None
        if spec is not None and spec.loader is not None:
            break
    else:
        return None
    execute = spec.loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        try:
            _ACTIONS[name](module)
        except Exception as error:  # noqa: BLE001  a harness we do not know must still work without us
            warnings.warn(f"lm-eval-lora-drop could not register with {name}: {error!r}", stacklevel=2)

    # The loader object belongs to this one spec, so nothing else sees the replaced method.
    spec.loader.exec_module = exec_module  # type: ignore[method-assign]
    return spec


def _register_models(_: ModuleType) -> None:
    from lm_eval.api.registry import model_registry

    for name, target in MODEL_TYPES.items():
        if name not in model_registry:
            model_registry.register(name, target=target)


def _register_tasks(module: Any) -> None:
    manager = module.TaskManager
    original = manager.__init__
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        call = signature.bind(self, *args, **kwargs)
        call.apply_defaults()
        if call.arguments["include_defaults"]:
            given = call.arguments["include_path"]
            given = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
            # Ours first: in the harness a later folder overrides an earlier one, and the user's shall win.
            call.arguments["include_path"] = [package_folder("tasks"), *given]
        original(*call.args, **call.kwargs)

    manager.__init__ = __init__


_ACTIONS = {"lm_eval.models": _register_models, "lm_eval.tasks": _register_tasks}
