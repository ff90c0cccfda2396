"""What was typed after `lm_eval`: checked before anything is loaded, and an error ends in a line, not in a traceback.

`plugin` runs the harness's `Run._execute` inside `within`. On the way the harness builds its configuration and looks up
its tasks; both are looked at as soon as they are there. Only commands for our model types are touched, except that an
error of ours (a task's `data_dir`, say) ends in a line under any model type.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from lm_eval_lora_drop.backends.args import LoraDropArgs, check_names, without_effect
from lm_eval_lora_drop.errors import ArgumentError, LoraDropError
from lm_eval_lora_drop.files import is_folder, user_path
from lm_eval_lora_drop.harness.task_index import Folders, task_manager
from lm_eval_lora_drop.spec import shown

log = logging.getLogger("lm_eval.lora_drop")

MODEL_TYPES = ("hf-lora-drop", "vllm-lora-drop")
INTERRUPTED = 130
"""128 and the number of SIGINT, as shells report it."""
_FALSE_START = re.compile(r"argument --model_args\S*: .*expected `key=value`, got (?P<item>.*)", re.DOTALL)
_NO_VALUE = re.compile(r"argument (?P<option>[^\s/:]+)\S*: invalid .* value: (?P<value>.*)", re.DOTALL)


@contextmanager
def within(model: str | None) -> Iterator[None]:
    """Run the harness's `run` inside: checks first, and errors a user can cause end in a line and an exit code.

    `model` is what was typed after --model; a configuration file may name another.

    Raises:
        SystemExit: 1 after such an error, 130 after SIGINT.
    """
    from lm_eval.config.evaluate_config import EvaluatorConfig

    given: dict[str, Any] = {}
    from_cli, process_tasks = EvaluatorConfig.from_cli, EvaluatorConfig.process_tasks

    def checked_from_cli(namespace: Any) -> Any:
        with _one_line(lambda: _is_ours(getattr(namespace, "model", None)), ValueError, TypeError, OSError):
            config = from_cli(namespace)
        if _is_ours(config.model):
            if not config.tasks:
                raise ArgumentError("--tasks must name what to evaluate, got none. List tasks with lm_eval ls tasks.")
            given["args"] = check(config.model_args, config.metadata, config.include_path, device=config.device)
            _check_rubric(config)
        return config

    @functools.wraps(process_tasks)
    def checked_process_tasks(self: Any, metadata: Any = None) -> Any:
        if not _is_ours(self.model):
            return process_tasks(self, metadata)
        # The harness makes a list of all its tasks, which takes seconds: only where one is asked for, and the same list
        # then serves for the near match.
        from lm_eval import tasks

        managers: list[Any] = []

        def make(include_path: Folders = None, metadata: Mapping[str, Any] | None = None) -> Any:
            typed = [self.tasks] if isinstance(self.tasks, str) else self.tasks
            managers.append(task_manager([name for one in typed for name in one.split(",")], include_path, metadata))
            return managers[0]

        manager_class = tasks.TaskManager
        tasks.TaskManager = make
        try:
            manager = process_tasks(self, metadata)
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise ArgumentError(_tasks_message(error, managers[0].all_tasks if managers else [])) from error
        finally:
            tasks.TaskManager = manager_class
        _check_metric(given["args"], manager, self.tasks)
        return manager

    EvaluatorConfig.from_cli = staticmethod(checked_from_cli)
    EvaluatorConfig.process_tasks = checked_process_tasks
    try:
        with _one_line(lambda: bool(given), OSError):
            yield
    except LoraDropError as error:
        _end(f"lm_eval: {error}", 1)
    except KeyboardInterrupt:
        if not given and not _is_ours(model):
            raise
        _end(f"lm_eval: interrupted. {_what_stays(given.get('args'))}", INTERRUPTED)
    finally:
        EvaluatorConfig.from_cli, EvaluatorConfig.process_tasks = staticmethod(from_cli), process_tasks


def _check_rubric(config: Any) -> None:
    """What judging with a rubric needs is there before the model is loaded. Raises ArgumentError."""
    metadata = config.metadata if isinstance(config.metadata, dict) else {}
    if not metadata.get("rubric"):
        return
    from lm_eval_lora_drop.judge.panel import panel_from
    from lm_eval_lora_drop.judge.questions import load_rubric

    load_rubric(metadata["rubric"])
    panel = panel_from(metadata)
    if panel is None or not config.output_path or not config.log_samples:
        raise ArgumentError(
            "metadata.rubric has outputs judged from the files of the run: it needs a panel (metadata.judges), "
            "--output_path and --log_samples."
        )
    panel.check_keys()


def check(
    model_args: Mapping[str, Any], metadata: Mapping[str, Any], include_path: Any = None, device: Any = None
) -> LoraDropArgs:
    """Our arguments, read without torch, and what else can be seen to be wrong by looking at paths.

    Raises:
        ArgumentError: something cannot be used as written.
    """
    known = {*_declared("lm_eval.models.huggingface", "HFLM"), *_declared("lm_eval.models.vllm_causallms", "VLLM")}
    args, _ = LoraDropArgs.take(model_args, {*known, "lora_local_path"})
    check_names(model_args)
    if "batch_size" in model_args:
        # The harness hands its own option on as well, always, and Python refuses two.
        raise ArgumentError(
            f"batch_size is an option of lm_eval, got batch_size={shown(model_args['batch_size'])} in model_args. "
            f"Write --batch_size {shown(model_args['batch_size'])}."
        )
    if unused := without_effect(model_args, args):
        log.warning(
            "%s: nothing is swept, so %s has no effect. Leave it out, or give boundary=auto.",
            args.spec,
            ", ".join(unused),
        )
    # model_args count as metadata too, for the harness.
    folder = metadata.get("data_dir")
    if folder is not None and not is_folder(user_path(str(folder), "data_dir")):
        raise ArgumentError(f"data_dir must be a folder with the benchmark's files; {shown(folder)} is none.")
    for one in [include_path] if isinstance(include_path, str) else include_path or ():
        if not is_folder(Path(one)):
            raise ArgumentError(f"--include_path must be a folder with task files; {shown(one)} is none.")
    if device is not None and not re.fullmatch(r"(cpu|cuda|mps|npu|xpu|hpu)(:[0-9]+)?", str(device)):
        raise ArgumentError(f"--device must be cpu, cuda, cuda:N or mps, got {shown(device)!r}.")
    return args


def explain_parser(error: Callable[[str], NoReturn]) -> Callable[[str], NoReturn]:
    """The `error` method of the harness's parser, in one line, and knowing what a comma does to `layers=0,1,2`."""

    def explained(message: str) -> NoReturn:
        if not any(name in argument for argument in sys.argv for name in MODEL_TYPES):
            error(message)
        if match := _FALSE_START.search(message):
            _end(f"lm_eval: {_comma(match['item'], sys.argv)}", 2)
        if match := _NO_VALUE.search(message):
            # argparse names the function that reads the option, which the harness has made by partial().
            message = f"{match['option']} cannot be {shown(match['value'])}"
        _end(f"lm_eval: {shown(message, 600)}. See lm_eval run --help.", 2)

    return explained


def _comma(item: str, argv: Sequence[str]) -> str:
    """What to say of a model_arg without `=`, `item` as the harness quotes it."""
    part = item.strip("'\"")
    for argument in argv:
        parts = [one.strip() for one in argument.split(",")]
        if part not in parts or "=" not in argument:
            continue
        before = [one for one in parts[: parts.index(part)] if "=" in one]
        if before:
            name = before[-1].partition("=")[0]
            run = [before[-1].partition("=")[2]]
            for one in parts[parts.index(before[-1]) + 1 :]:
                if "=" in one:
                    break
                run.append(one)
            joined = ":".join(run) if name == "sweep_metric" else "+".join(run)
            got = shown(f"{name}={','.join(run)}")
            return (
                f"a comma separates model_args, none can stand inside {name}, got {got}. Write {name}={shown(joined)}."
            )
    return f"each of model_args must be key=value, got {shown(item)}. Write e.g. boundary=20, with a comma between two."


def _is_ours(model: Any) -> bool:
    return model in MODEL_TYPES


@contextmanager
def _one_line(ours: Callable[[], bool], *kinds: type[Exception]) -> Iterator[None]:
    """Somebody else's exceptions of these kinds as our own, their first line as the message."""
    try:
        yield
    except LoraDropError:
        raise
    except kinds as error:
        if not ours() or log.isEnabledFor(logging.DEBUG):
            raise
        raise ArgumentError(_first_line(error)) from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).split("\n") if line.strip()]
    return shown(" ".join(lines[:2]) or type(error).__name__, 600)


def _end(message: str, code: int) -> NoReturn:
    if log.isEnabledFor(logging.DEBUG):
        log.debug("as it was raised", exc_info=True)
    print(message, file=sys.stderr, flush=True)
    raise SystemExit(code)


def _what_stays(args: LoraDropArgs | None) -> str:
    if args is None:
        return "Nothing had begun."
    if not args.spec.needs_validation:
        return "No sweep was running; with --use_cache FILE the answers of a run are kept."
    where = f" under {args.sweep_dir}" if args.sweep_dir else ""
    return f"The journal{where} has what the sweep answered: the same command goes on from there."


def _declared(module: str, name: str) -> list[str]:
    """The parameters of a class of the harness, read from its source: to import it would import torch."""
    found = importlib.util.find_spec(module)
    if found is None or not found.origin:
        return []
    tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    return [one.arg for one in (*method.args.args, *method.args.kwonlyargs)]
    return []


def _tasks_message(error: Exception, names: Sequence[str]) -> str:
    text = _first_line(error)
    missing = text.removeprefix("Tasks not found: ").split(", ") if text.startswith("Tasks not found: ") else []
    if not missing:
        return f"--tasks cannot be loaded: {text}"
    near = difflib.get_close_matches(missing[0][:80], names, n=1)
    hint = f" Did you mean {near[0]}?" if near else " List them with lm_eval ls tasks; --include_path adds a folder."
    return f"--tasks must name tasks of lm-eval, got {shown(', '.join(missing))}.{hint}"


def _check_metric(args: LoraDropArgs, manager: Any, tasks: Sequence[Any]) -> None:
    """Refuse a `sweep_metric` that a task's own file does not list. Where a task says it in code, the sweep will."""
    from lm_eval_lora_drop.sweep.documents.reference import REFERENCE_LOGLIKELIHOOD

    if args.spec.kind != "auto" or args.sweep_metric in (None, REFERENCE_LOGLIKELIHOOD):
        return
    wanted = str(args.sweep_metric).partition(",")[0].strip()
    for task in tasks:
        names = _metrics_of(manager, task)
        if names and wanted not in names:
            near = difflib.get_close_matches(wanted, names, n=1)
            hint = f" Did you mean sweep_metric={near[0]}?" if near else ""
            raise ArgumentError(
                f"sweep_metric must name a metric of task {task}, got {shown(wanted)!r}. There are: "
                f"{', '.join(names)}.{hint}"
            )


def _metrics_of(manager: Any, task: Any) -> list[str]:
    from lm_eval.tasks._yaml_loader import load_yaml

    entry = manager.task_index.get(task) if isinstance(task, str) else None
    path = getattr(entry, "yaml_path", None)
    if path is None:
        return []
    try:
        data = load_yaml(path, resolve_func=False)
    except Exception:  # noqa: BLE001  the harness loads it next, and says what is wrong with it
        return []
    listed = data.get("metric_list") if isinstance(data, dict) else None
    return [str(one["metric"]) for one in listed if isinstance(one, dict) and "metric" in one] if listed else []
