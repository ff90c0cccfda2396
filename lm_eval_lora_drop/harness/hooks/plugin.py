"""Gives the harness our names: the model types and the task folder. The only file that knows how it discovers plugins.

Releases of lm-eval after 0.4.13 read the entry points in `pyproject.toml`, for model types. For 0.4.13 the wheel
carries a one-line `.pth` that executes `_startup.py` at interpreter start: it puts a finder on `sys.meta_path` that
waits for three modules of the harness and asks `registering_spec` here for them. Before that nothing of ours is
imported.

The third module is the harness's command line: what `lm_eval` prints ends with our answer (`show.listeners.screen`), or,
where it cannot be used as typed, with one line that says why (`harness.hooks.command_line`).
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
    "hf-lora-drop": "lm_eval_lora_drop.backends.hf:LoraDropLM",
    "vllm-lora-drop": "lm_eval_lora_drop.backends.vllm:VllmLoraDropLM",
}
_OURS = "__lora_drop__"
"""Marks what we have replaced in a module of the harness, so that a second time changes nothing."""


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
    from lm_eval.api import registry

    # A harness that reads entry points (its pull requests 4013 and 4014) has `load_plugins` and finds us by itself.
    if hasattr(registry, "load_plugins"):
        return
    for name, target in MODEL_TYPES.items():
        if name not in registry.model_registry:
            registry.model_registry.register(name, target=target)


def _register_tasks(module: Any) -> None:
    # No release discovers task folders (pull request 4015 is open), and we declare no entry point for one.
    manager = module.TaskManager
    original = manager.__init__
    if hasattr(original, _OURS):
        return
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

    setattr(__init__, _OURS, True)
    manager.__init__ = __init__


def _begin_and_end(module: Any) -> None:
    """Have `lm_eval run` check what is ours first, and print our screen after everything else it prints.

    `Run._execute` is a static method that the command line looks up when it is built; the results dictionary is local
    to it, and `EvaluationTracker.save_results_aggregated` is the one public call that is given it, with or without
    `--output_path`, on the first process only.
    """
    original = module.Run._execute
    if hasattr(original, _OURS):
        return

    @functools.wraps(original)
    def _execute(args: Any) -> None:
        from lm_eval.loggers.evaluation_tracker import EvaluationTracker

        saved: list[tuple[Any, Any]] = []
        save = EvaluationTracker.save_results_aggregated

        @functools.wraps(save)
        def noting(self: Any, results: Any, *rest: Any, **named: Any) -> Any:
            outcome = save(self, results, *rest, **named)
            saved.append((results, self))
            return outcome

        from lm_eval_lora_drop.harness.hooks.command_line import within

        EvaluationTracker.save_results_aggregated = noting
        try:
            with within(getattr(args, "model", None)):
                original(args)
        finally:
            EvaluationTracker.save_results_aggregated = save
        for results, tracker in saved:
            from lm_eval_lora_drop.judge.rescore import judge_after_run
            from lm_eval_lora_drop.show.listeners.screen import results_file, show_run

            file = results_file(tracker)
            if file is not None and str((results.get("config") or {}).get("model")) in MODEL_TYPES:
                print(*judge_after_run(file), sep="\n")
            show_run(results, tracker)

    setattr(_execute, _OURS, True)
    module.Run._execute = staticmethod(_execute)
    add_arguments = module.Run._add_args

    @functools.wraps(add_arguments)
    def _add_args(self: Any) -> None:
        from lm_eval_lora_drop.harness.hooks.command_line import explain_parser

        add_arguments(self)
        self._parser.error = explain_parser(self._parser.error)

    module.Run._add_args = _add_args


_ACTIONS = {
    "lm_eval.models": _register_models,
    "lm_eval.tasks": _register_tasks,
    "lm_eval._cli.run": _begin_and_end,
}
