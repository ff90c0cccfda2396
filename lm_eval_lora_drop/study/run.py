"""`lora-drop ablate`: a grid of boundaries, layer sets, metrics and adapters in one process, one model load per base.

Every cell is written as an ordinary run of lm_eval (results and samples), so `compare`, `leaderboard` and `report` read
it. A cell whose folder says that it is done is passed over, so an interrupted grid goes on where it was.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from lm_eval_lora_drop.adapter import files as adapter_files
from lm_eval_lora_drop.errors import LoraDropError
from lm_eval_lora_drop.models.args import LoraDropArgs
from lm_eval_lora_drop.models.hf import LoraDropLM
from lm_eval_lora_drop.study.grid import Cell, Grid

log = logging.getLogger(__name__)
DONE = "ablation.json"
_HFLM = inspect.signature(HFLM.__init__).parameters


def ablate(grid: Grid) -> list[str]:
    """Run what is not yet done of `grid`; returns a sentence for each cell that could not be run."""
    model: LoraDropLM | None = None
    loaded: str | None = None
    manager: TaskManager | None = None
    failed = []
    for number, cell in enumerate(grid.cells, start=1):
        folder = grid.folder(cell)
        if (folder / DONE).is_file():
            log.info("%d/%d %s: done before, %s", number, len(grid.cells), cell.name, folder)
            continue
        log.info("%d/%d %s", number, len(grid.cells), cell.name)
        try:
            if model is None or (loaded != cell.adapter and not _can_swap(loaded, cell.adapter)):
                model = None  # frees the old one before the new one is loaded
                model = LoraDropLM(peft=cell.adapter, **_load_args(grid), **cell.model_args)
            elif loaded != cell.adapter:
                model.swap_adapter(cell.adapter)
            loaded = cell.adapter
            args, _ = LoraDropArgs.take({**grid.model_args, **cell.model_args}, known=_HFLM)
            model.use(args)
            # Indexing the harness's tasks takes seconds: once for all cells, and not for none.
            manager = manager or TaskManager(
                include_path=grid.include_path, metadata={**grid.model_args, **grid.metadata}
            )
            _evaluate(model, grid, cell, manager, folder)
        except LoraDropError as error:
            failed.append(f"{cell.name}: {error}")
            log.error("%s: %s", cell.name, error)
    return failed


def _load_args(grid: Grid) -> dict[str, Any]:
    given = {key: value for key, value in grid.evaluation.items() if key in ("batch_size", "device")}
    # The lm_eval command's own default: the first GPU, and the CPU where there is none. HFLM's default insists on CUDA.
    return {"device": "cuda:0", **grid.model_args, **given}


def _can_swap(before: str | None, after: str) -> bool:
    """Whether taking one adapter out of the base model leaves that as it was loaded: LoRA alone does."""
    return not any(adapter_files.trained_besides_lora(adapter_files.open_adapter(str(one))) for one in (before, after))


def _evaluate(model: LoraDropLM, grid: Grid, cell: Cell, manager: TaskManager, folder: Path) -> None:
    arguments = {**grid.model_args, "peft": cell.adapter, **cell.model_args}
    tracker = EvaluationTracker(output_path=str(folder))
    results: Any = simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=list(grid.tasks),
        task_manager=manager,
        evaluation_tracker=tracker,
        log_samples=True,
        **grid.evaluation,
    )
    if results is None:  # another rank writes
        return
    # The harness takes its name for a model that it did not load from the model's configuration.
    results["config"]["model"] = "hf-lora-drop"
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task, logged in samples.items():
        tracker.save_results_samples(task_name=task, samples=logged)
    _mark_done(folder, cell, arguments, results)


def _mark_done(folder: Path, cell: Cell, arguments: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    # The harness logs a file it could not write and goes on; such a cell is not done.
    if not any(folder.rglob("results_*.json")):
        raise LoraDropError(f"{cell.name}: lm_eval could not write its results to {folder}.")
    scores = {task: {k: v for k, v in row.items() if isinstance(v, float)} for task, row in results["results"].items()}
    text = json.dumps({"cell": cell.name, "model_args": dict(arguments), "results": scores}, indent=2, default=str)
    (folder / DONE).write_text(text + "\n", encoding="utf-8")
