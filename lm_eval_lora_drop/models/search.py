"""Finds a task's boundary on validation documents, or says why the default is taken. Backend-free."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_lora_drop import validation
from lm_eval_lora_drop.boundary import LayerSet, default_boundary
from lm_eval_lora_drop.models.record import Decision, digest
from lm_eval_lora_drop.sweep.journal import Journal
from lm_eval_lora_drop.sweep.metric import resolve_metric
from lm_eval_lora_drop.sweep.run import SweepSettings, run_sweep
from lm_eval_lora_drop.sweep.score import Scorer

if TYPE_CHECKING:
    from lm_eval_lora_drop.models.base import LoraDropBase

log = logging.getLogger(__name__)


def search(model: LoraDropBase, binding: validation.Binding) -> Decision:
    """The boundary of one task: by a sweep, or the default boundary where there are no validation documents.

    Raises:
        ArgumentError: the task has no such metric.
    """
    args = model.lora_drop
    start = time.perf_counter()
    scorer = Scorer(binding.task, resolve_metric(binding.task, args.sweep_metric))
    drawn = validation.draw(binding, args.sweep_limit, args.sweep_seed)
    if drawn is None:
        return _default(model, binding)
    if drawn.left_out:
        log.info("%s: left out %d drawn documents that are also evaluated", binding.name, drawn.left_out)
    for warning in drawn.warnings:
        log.warning("%s: %s", binding.name, warning)
    fingerprint = digest(model.task_fingerprint(binding), drawn.fingerprint)
    recalled = model.recall(fingerprint)
    if recalled is not None:
        log.info("%s: boundary %s as recorded in the answer cache", binding.name, recalled.kept.boundary)
        return recalled.bound_to(binding)
    journal = Journal(
        model.sweep_folder(),
        model.task_fingerprint(binding),
        binding.name,
        rank=model.peers().rank,
        settings={**model.fingerprint_parts(), "task": binding.name, "version": str(binding.task.VERSION)},
    )
    runner, engine = model.runner(drawn.documents)
    settings = SweepSettings(
        boundaries=args.candidates(model.num_layers),
        strategy=args.sweep_strategy,
        select=args.sweep_select,
        seed=args.sweep_seed,
    )
    log.info(
        "%s: sweep over %d boundaries on %d documents of split %r by %s (%s pass), journal %s",
        binding.name,
        len(settings.boundaries),
        len(drawn.documents),
        drawn.split,
        scorer.metric.name,
        engine,
        journal.path,
    )
    result = run_sweep(
        drawn.documents, runner, scorer, settings, journal, num_layers=model.num_layers, peers=model.peers()
    )
    sweep = {**result.to_json(), "engine": engine}
    log.info("%s\n%s", binding.name, result.table())
    decision = Decision(
        LayerSet.below(result.boundary, model.num_layers),
        method="sweep",
        binding=binding,
        fingerprint=fingerprint,
        metric=scorer.metric,
        drawn=drawn,
        sweep=sweep,
        journal=journal.path,
        seconds=time.perf_counter() - start,
        warnings=drawn.warnings,
    )
    return replace(decision, figure=_save_figure(binding.name, decision)) if model.peers().rank == 0 else decision


def _save_figure(task: str, decision: Decision) -> Path | None:
    """Draw the sweep beside its journal; a figure that cannot be drawn costs a warning, not the sweep."""
    from lm_eval_lora_drop.report.figures import save_figure, sweep_figure

    assert decision.journal is not None
    try:
        files = save_figure(sweep_figure(task, decision.to_json(0, 0)), decision.journal.with_suffix(""))
    except Exception as error:  # noqa: BLE001
        log.warning("%s: the figure of the sweep could not be drawn: %s", task, error)
        return None
    log.info("%s: figure %s", task, files[0])
    return files[0]


def _default(model: LoraDropBase, binding: validation.Binding) -> Decision:
    kept = LayerSet.below(default_boundary(model.num_layers), model.num_layers)
    warning = (
        f"task {binding.name} has no validation or training documents besides the evaluated ones, so no boundary could "
        f"be searched: the paper's default is taken, boundary={kept.boundary} (15 of 32 layers, scaled to "
        f"{model.num_layers})."
    )
    log.warning(warning)
    return Decision(kept, "default", binding, model.task_fingerprint(binding), warnings=(warning,))
