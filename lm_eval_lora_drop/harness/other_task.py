"""`sweep_task`: the task that a search reads where the evaluated one has no documents to search on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval.api.task import Task
from lm_eval.tasks._yaml_loader import load_yaml

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness.documents import Binding
from lm_eval_lora_drop.harness.task_index import task_manager
from lm_eval_lora_drop.text import did_you_mean

# Of the evaluated task's metadata, what describes that task and no other; the rest came with --metadata.
_ITS_OWN = frozenset({"version", "cluster", "config_source"})


def _is_file_name(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def check_other_task(name: str, metadata: Mapping[str, Any]) -> Any:
    """The task manager that knows the task `name`; it needs no model.

    Raises:
        ArgumentError: there is no such task or file, or it is a group.
    """
    if _is_file_name(name):
        if not Path(name).is_file():
            raise ArgumentError(f"sweep_task must name a task or an existing YAML file, got {name}.")
        return task_manager([], metadata=metadata)
    manager = task_manager([name], metadata=metadata)
    if name not in manager.all_subtasks:
        hint = did_you_mean(name, manager.all_subtasks, option="sweep_task")
        raise ArgumentError(
            f"sweep_task must name one task (no group), got {name!r}, which lm-eval does not know as one.{hint} A task "
            "of an --include_path is named by the path of its YAML file."
        )
    return manager


def other_task(name: str, binding: Binding) -> Binding:
    """The task `name` with prompts made as those of `binding` are (chat template, system prompt).

    Args:
        name: a task of the harness or of ours, or the path of a YAML file. Names in an --include_path are not known
            to a model; their files are.
        binding: the task that is evaluated.

    Raises:
        ArgumentError: there is no such task, it is a group or the evaluated task itself, or it runs generated code and
            the evaluated one does not, so that `--confirm_run_unsafe_code` was not asked for.
    """
    metadata = {key: value for key, value in (binding.task.config.metadata or {}).items() if key not in _ITS_OWN}
    manager = check_other_task(name, metadata)
    loaded = manager.load([load_yaml(name, resolve_func=True) if _is_file_name(name) else name])["tasks"]
    task: Task = next(iter(loaded.values()))
    if str(task.config.task) == binding.name:
        raise ArgumentError(
            f"sweep_task={name} is the evaluated task itself, which has no documents besides the evaluated ones. Name "
            "another task."
        )
    if getattr(task, "UNSAFE_CODE", False) and not getattr(binding.task, "UNSAFE_CODE", False):
        raise ArgumentError(
            f"sweep_task={name} runs code that the model writes, and {binding.name} does not: that was not "
            "confirmed. Name a task that runs none, or evaluate one that does, with --confirm_run_unsafe_code."
        )
    task.set_fewshot_seed(seed=1234)  # as the harness does for every task it evaluates; a draw seeds its own
    return Binding(task, binding.prompt_arguments)
