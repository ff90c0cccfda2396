"""Finds a task's boundary on validation documents, or says why the default is taken. Backend-free."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_lora_drop import validation
from lm_eval_lora_drop.boundary import LayerSet, default_boundary
from lm_eval_lora_drop.probe.reference import REFERENCE_LOGLIKELIHOOD, ReferenceLoglikelihood, reference_documents
from lm_eval_lora_drop.record.decision import Decision, digest
from lm_eval_lora_drop.record.journal import Journal
from lm_eval_lora_drop.sweep import prior
from lm_eval_lora_drop.sweep.metric import MetricSpec, resolve_metric
from lm_eval_lora_drop.sweep.run import SweepSettings, run_sweep
from lm_eval_lora_drop.sweep.score import Scorer
from lm_eval_lora_drop.work import Document, Runner, Work

if TYPE_CHECKING:
    from lm_eval_lora_drop.models.base import LoraDropBase

log = logging.getLogger(__name__)


def search(model: LoraDropBase, binding: validation.Binding) -> Decision:
    """The boundary of one task: by a sweep or the probe, or the default boundary where there are no documents for it.

    Raises:
        ArgumentError: the task has no such metric, or the backend cannot do what was asked for.
    """
    args = model.lora_drop
    start = time.perf_counter()
    metric = None
    if args.spec.kind == "auto" and args.sweep_metric != REFERENCE_LOGLIKELIHOOD:
        metric = resolve_metric(binding.task, args.sweep_metric)
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
    found = _probe(model, binding, drawn) if args.spec.kind == "probe" else _sweep(model, binding, drawn, metric)
    return replace(found, fingerprint=fingerprint, seconds=time.perf_counter() - start)


def _sweep(
    model: LoraDropBase, binding: validation.Binding, drawn: validation.ValidationSet, metric: MetricSpec | None
) -> Decision:
    """Compare the candidates on the drawn documents, by `metric`; where it is None, by their references' likelihood."""
    args = model.lora_drop
    documents = drawn.documents
    scorer: Any  # a Scorer, or what stands in for one where nothing is generated
    if metric is None:
        documents = reference_documents(documents, validation.references(binding, documents))
        scorer = ReferenceLoglikelihood(model, documents)
    else:
        scorer = Scorer(binding.task, metric)
    journal = Journal(
        model.sweep_folder(),
        model.task_fingerprint(binding),
        binding.name,
        rank=model.peers().rank,
        settings={**model.fingerprint_parts(), "task": binding.name, "version": str(binding.task.VERSION)},
    )
    runner, engine = model.runner(documents)
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
        len(documents),
        drawn.split,
        scorer.metric.name,
        engine,
        journal.path,
    )
    result = run_sweep(
        documents,
        runner,
        scorer,
        settings,
        journal,
        num_layers=model.num_layers,
        peers=model.peers(),
        reference=_prior(model, binding, documents, runner, engine, settings),
    )
    log.info("%s\n%s", binding.name, result.table())
    decision = Decision(
        LayerSet.below(result.boundary, model.num_layers),
        method="sweep",
        binding=binding,
        metric=scorer.metric,
        drawn=replace(drawn, documents=documents),
        sweep={**result.to_json(), "engine": engine},
        journal=journal.path,
        warnings=(*drawn.warnings, *result.warnings),
    )
    return replace(decision, figure=_save_figure(binding.name, decision)) if model.peers().rank == 0 else decision


def _prior(
    model: LoraDropBase,
    binding: validation.Binding,
    documents: Sequence[Document],
    runner: Runner,
    engine: str,
    settings: SweepSettings,
) -> dict[int, list[float]] | None:
    """The references' log-likelihood per token under some candidates, for racing to retire what is hopeless.

    Only where it costs one pass and saves generating: with the shared pass, for a task that generates. It reads the
    first `prior.DOCUMENTS` (they come in random order), every process all of them, so that all retire the same
    boundaries.
    """
    documents = documents[: prior.DOCUMENTS]
    generates = documents[0].requests[0].request_type == "generate_until"
    if settings.strategy != "racing" or engine != "shared" or not generates:
        return None
    references = validation.references(binding, documents)
    if not all(reference.strip() for reference in references):
        return None
    asked = reference_documents(documents, references)
    scorer = ReferenceLoglikelihood(model, asked)
    boundaries = tuple(prior.read_at(settings.boundaries, model.num_layers))
    found: dict[int, dict[str, float]] = {boundary: {} for boundary in boundaries}
    for answers in runner([Work(document, boundaries) for document in asked]):
        for answer in answers:
            item = scorer.item(answer)
            found[answer.boundary][answer.document.key] = float("nan") if item is None else item
    return {boundary: [items[document.key] for document in asked] for boundary, items in found.items()}


def _probe(model: LoraDropBase, binding: validation.Binding, drawn: validation.ValidationSet) -> Decision:
    """Read the references' probability layer by layer, and keep the layers below the rise point."""
    references = validation.references(binding, drawn.documents)
    pairs = [
        (str(document.requests[0].args[0]), reference)
        for document, reference in zip(drawn.documents, references, strict=True)
    ]
    result = model.probe(pairs)
    log.info("%s\n%s", binding.name, result.table())
    return Decision(
        LayerSet.below(result.boundary, model.num_layers),
        method="probe",
        binding=binding,
        drawn=drawn,
        probe=result.to_json(),
        warnings=(*drawn.warnings, *result.warnings),
    )


def _save_figure(task: str, decision: Decision) -> Path | None:
    """Draw the sweep beside its journal; a figure that cannot be drawn costs a warning, not the sweep."""
    from lm_eval_lora_drop.figures.sweep import save_figure, sweep_figure

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
