"""Which split of a task is evaluated, which one validation documents and few-shot examples come from."""

from __future__ import annotations

from lm_eval.api.task import Task


def evaluated_split(task: Task) -> str | None:
    """The split that an evaluation reads, as `Task.eval_docs` chooses it."""
    split = task.config.test_split if task.has_test_docs() else task.config.validation_split
    return None if split is None else str(split)


def draws_from(task: Task) -> str | None:
    """The split that validation documents come from: validation, else training; None where there is no other."""
    evaluated = evaluated_split(task)
    if task.has_validation_docs() and task.config.validation_split != evaluated:
        return str(task.config.validation_split)
    if task.has_training_docs() and task.config.training_split != evaluated:
        return str(task.config.training_split)
    return None


def shows_evaluated(task: Task) -> bool:
    """Whether the task's few-shot examples are the evaluated split, by the rules of `ConfigurableTask.fewshot_docs`."""
    given = task.fewshot_cfg
    if given.split is not None:
        return bool(given.split == evaluated_split(task))
    if given.samples is not None:
        return False
    if task.has_training_docs():
        return bool(task.config.training_split == evaluated_split(task))
    return not task.has_validation_docs() or task.config.validation_split == evaluated_split(task)
