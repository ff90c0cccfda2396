"""Gives lm-eval our names without importing the package: model types as dotted targets, tasks as a folder.

Releases of lm-eval after 0.4.13 read the entry points in `pyproject.toml`, for model types. For 0.4.13 the wheel
carries a one-line `.pth` that executes `_startup.py` at interpreter start: it puts a finder on `sys.meta_path` that
waits for two modules of lm-eval and executes this file, by its path, for them. So a command that names nothing of ours
imports nothing of ours, and nothing of ours can break it; this file imports the standard library only.

Whatever a run of our model types needs besides is armed when lm-eval looks one up (`models`, beside this file).
"""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

MODEL_TYPES = "lm_eval.models"
"""The entry points that name model types: ours (`pyproject.toml`), and those of other distributions."""
_OURS = "__lora_drop__"
"""Marks what we have replaced in a module of lm-eval, so that a second time changes nothing."""


def registering_spec(
    finder: Any, name: str, path: Sequence[str] | None, target: ModuleType | None
) -> ModuleSpec | None:
    """The spec that all finders but `finder`, which is ours, have for lm-eval's module `name`, made to register us once
    it has been executed."""
    for other in sys.meta_path:
        find_spec = None if other is finder else getattr(other, "find_spec", None)
        spec: ModuleSpec | None = find_spec(name, path, target) if find_spec else None
        if spec is not None and spec.loader is not None:
            break
    else:
        return None
    execute = spec.loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        if finder not in sys.meta_path:  # a registration failed, and one warning is enough
            return
        try:
            _ACTIONS[name](module)
        except Exception as error:  # noqa: BLE001  an lm-eval we do not know must still work without us
            sys.meta_path.remove(finder)
            warnings.warn(
                f"lm-eval-lora-drop could not register with {name} ({error!r}), so lm_eval does not know all of its "
                "model types and tasks. Install a release of lm-eval that it supports: pip install 'lm-eval<0.5'",
                stacklevel=2,
            )

    # The loader object belongs to this one spec, so nothing else sees the replaced method.
    spec.loader.exec_module = exec_module  # type: ignore[method-assign]
    return spec


def _register_models(_: ModuleType) -> None:
    from importlib.metadata import entry_points

    from lm_eval.api import registry

    # A release that reads entry points (pull requests 4013 and 4014) has `load_plugins` and finds us by itself.
    if hasattr(registry, "load_plugins"):
        return
    for one in entry_points(group=MODEL_TYPES):
        if one.name not in registry.model_registry:
            registry.model_registry.register(one.name, target=one)


def _add_tasks(module: Any) -> None:
    """No release discovers task folders (pull request 4015 is open), and we declare no entry point for one."""
    manager = module.TaskManager
    original = manager.__init__
    if hasattr(original, _OURS) or not sys.modules["lm_eval"].__version__.startswith("0.4."):
        return
    package = Path(__file__).resolve().parents[2]
    # `files.package_folder`, which cannot be imported here: in a wheel, or at the top of a checkout.
    folder = next(path for path in (package / "tasks", package.parent / "tasks") if path.is_dir())
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        call = signature.bind(self, *args, **kwargs)
        call.apply_defaults()
        if call.arguments["include_defaults"]:
            given = call.arguments["include_path"]
            given = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
            # Ours first: in lm-eval a later folder overrides an earlier one, and the user's shall win.
            call.arguments["include_path"] = [folder, *given]
        original(*call.args, **call.kwargs)

    setattr(__init__, _OURS, True)
    manager.__init__ = __init__


_ACTIONS = {"lm_eval.models": _register_models, "lm_eval.tasks": _add_tasks}
