"""An evaluation from Python, saved as lm-eval's command line saves it; and lm-eval's log."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any


def log_with_the_harness(level: str | None = None) -> None:
    """Send our log records where lm-eval sends its own: same handler, same level, same format.

    Args:
        level: set lm-eval's log up as its command line does, from this level on; None: it is set up already.
    """
    if level is not None:
        from lm_eval.utils import setup_logging

        setup_logging(level)
    logging.getLogger("lm_eval_lora_drop").parent = logging.getLogger("lm_eval")


def evaluate(
    model: Any, output: Path | None, *, name: str | None = None, **arguments: Any
) -> tuple[dict[str, Any], Path | None] | None:
    """`lm_eval.simple_evaluate`, its results and samples saved below `output` (None: saved nowhere).

    Args:
        model: a loaded model.
        output: a folder or a .json file, as --output_path.
        name: the model type to record; lm-eval takes the name of a loaded model from the model's configuration.
        **arguments: of `simple_evaluate`.

    Returns:
        The results and their file (None where lm-eval, which logs such an error and goes on, could not write it); None
        on every process but the first.
    """
    import lm_eval
    from lm_eval.loggers import EvaluationTracker

    tracker = None if output is None else EvaluationTracker(output_path=str(output))
    results: Any = lm_eval.simple_evaluate(
        model=model, evaluation_tracker=tracker, log_samples=tracker is not None, **arguments
    )
    if results is None:
        return None
    if name is not None:
        results["config"]["model"] = name
    if tracker is None:
        return results, None
    samples = results.pop("samples", {})
    tracker.save_results_aggregated(results=results, samples=samples)
    for task, rows in samples.items():
        tracker.save_results_samples(task_name=task, samples=rows)
    return results, results_file(tracker)


def results_file(tracker: Any) -> Path | None:
    """The file that an `EvaluationTracker` has written, None where it wrote none.

    By its own rule (lm_eval/loggers/evaluation_tracker.py, 0.4.13): it keeps the date but not the path.
    """
    folder, date = getattr(tracker, "output_path", None), getattr(tracker, "date_id", None)
    if not folder or not date:
        return None
    path = Path(folder)
    if path.suffix == ".json":
        file = path.with_name(f"{path.stem}_{date}.json")
    else:
        file = path / str(tracker.general_config_tracker.model_name_sanitized) / f"results_{date}.json"
    return file if file.is_file() else None


def results_folder(tracker: Any, model_args: Any) -> Path | None:
    """Where an `EvaluationTracker` will write, known before the model is; None where it writes nothing."""
    from lm_eval.utils import sanitize_model_name

    if not (folder := getattr(tracker, "output_path", None)):
        return None
    path = Path(folder)
    if path.suffix == ".json":
        return path.parent
    name = tracker.general_config_tracker._get_model_name(model_args)
    return path / sanitize_model_name(name) if name else path
