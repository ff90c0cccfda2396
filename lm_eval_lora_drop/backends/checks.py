"""What is checked before minutes of loading a model: our arguments against the adapter, and against the tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import check_writable, is_folder, user_path
from lm_eval_lora_drop.harness.other_task import check_other_task
from lm_eval_lora_drop.harness.task_index import listed_metrics, running_evaluation, task_manager
from lm_eval_lora_drop.judge.rescore import check_judging
from lm_eval_lora_drop.judge.task import METRIC
from lm_eval_lora_drop.options import LoraDropArgs, without_effect
from lm_eval_lora_drop.record.choice import read_recorded
from lm_eval_lora_drop.sweep.candidates import candidates_of
from lm_eval_lora_drop.sweep.documents.reference_likelihood import REFERENCE_LOGLIKELIHOOD
from lm_eval_lora_drop.sweep.select import selection
from lm_eval_lora_drop.sweep.tradeoffs.also import check_also
from lm_eval_lora_drop.sweep.tradeoffs.bounds import check_bounds, parse_bounded
from lm_eval_lora_drop.sweep.tradeoffs.jointly import check_jointly
from lm_eval_lora_drop.text import did_you_mean, logger, shown
from lm_eval_lora_drop.variant import AdapterShape

log = logger(__name__)


def check_before_loading(args: LoraDropArgs, shape: AdapterShape) -> None:
    """Raise ArgumentError for what cannot work with such an adapter, before minutes of loading its model."""
    args.spec.resolve(shape.num_layers)
    if args.spec.source is not None:
        read_recorded(args.spec.source)
    if args.spec.needs_validation or (args.evaluate or ("chosen",)) != ("chosen",):
        check_writable(sweep_folder(args), "sweep_dir")
    if args.spec.needs_validation:
        compared = candidates_of(args, shape)
        candidates = compared.variants
        if rule := parse_bounded(args.sweep_select or ""):
            check_bounds(rule, [one.task for one in args.sweep_also], candidates)
        if args.sweep_jointly and args.spec.kind == "probe":
            raise ArgumentError(
                f"sweep_jointly={args.sweep_jointly} compares the scores of a sweep, and boundary=probe makes none. "
                "Take boundary=auto."
            )
        if args.sweep_jointly:
            check_jointly(
                args.sweep_jointly, args.sweep_candidates.names, args.sweep_strategy, args.sweep_select, candidates
            )
        check_also(args.sweep_also)
        selection(args.sweep_select, args.sweep_strategy, ordered=compared.ordered)


def check_against_tasks(args: LoraDropArgs, model_args: Mapping[str, Any]) -> None:
    """Check the arguments against the tasks of the running `simple_evaluate`, before the model is loaded.

    Warns of arguments of a sweep where none runs. A metric that a task computes in code is checked by its sweep; so is
    everything outside `simple_evaluate`.

    Raises:
        ArgumentError: an `--output_path` that cannot be written, no such `data_dir` or `sweep_task`, a rubric without
            what judging needs, or a `sweep_metric` that a task's own file does not list.
    """
    if unused := without_effect(model_args, args):
        log.warning(
            "%s has no effect: %s is fixed, so no sweep runs. Leave it out, or give boundary=auto.",
            ", ".join(unused),
            args.spec,
        )
    evaluation = running_evaluation()
    if evaluation is None:
        return
    if evaluation.output is not None:
        # lm-eval answers everything first, then logs that it could not save, and ends with status 0.
        check_writable(evaluation.output, "--output_path")
    names = [task for task in evaluation.tasks if isinstance(task, str)]
    folder = evaluation.metadata.get("data_dir")
    # Other people's tasks may mean something else by it.
    ours = any(f"{name}_".startswith("lora_drop_") for name in names)
    if ours and folder is not None and not is_folder(user_path(str(folder), "data_dir")):
        raise ArgumentError(
            f"data_dir must be a folder with the benchmark's files, got {shown(folder)}, which is not a directory. "
            "Correct the path, or leave data_dir out to read the benchmark from the Hub."
        )
    if args.sweep_task is not None and args.spec.needs_validation:
        check_other_task(args.sweep_task, evaluation.metadata)
    if evaluation.metadata.get("rubric"):
        check_judging(evaluation.metadata, saves_samples=evaluation.saves_samples)
    wanted = (args.sweep_metric or REFERENCE_LOGLIKELIHOOD).partition(",")[0].strip()
    if args.spec.kind != "auto" or wanted == REFERENCE_LOGLIKELIHOOD:
        return
    manager = evaluation.manager or task_manager(names)
    for task in evaluation.tasks:
        listed = listed_metrics(manager, task)
        if wanted == METRIC:  # added by a panel, in no file of a task; its sweep knows whether there is one
            continue
        if listed and wanted not in listed:
            raise ArgumentError(
                f"sweep_metric must name a metric of task {shown(task)}, got {shown(wanted)!r}. There are: "
                f"{', '.join(listed)}." + did_you_mean(wanted, listed, option="sweep_metric")
            )


def sweep_folder(args: LoraDropArgs) -> Path:
    """Where journals and figures of sweeps lie."""
    return args.sweep_dir or user_cache_path("lm-eval-lora-drop", appauthor=False) / "sweeps"
