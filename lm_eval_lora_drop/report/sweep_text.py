"""A sweep in text: a line per candidate, and what may be said of the choice."""

from __future__ import annotations

from lm_eval_lora_drop.record.schema import SweepRecord, TaskRecord
from lm_eval_lora_drop.variant import Variant


def sweep_table(task: TaskRecord) -> str:
    """A line per candidate, in their order, then sentences about the choice and the warnings.

    Raises:
        ValueError: the task had no sweep.
    """
    sweep = task.sweep
    if sweep is None or task.metric is None:
        raise ValueError("a table needs a sweep")
    digits = _digits(sweep)
    name = str(task.metric)
    width = max(len(name), 10)
    boundaries = sweep.family == "boundary"
    variants = {row.variant: Variant.parse(row.variant, task.num_layers) for row in sweep.candidates}
    shown = {text: str(kept.boundary) if boundaries else kept.label for text, kept in variants.items()}
    first = max(4, *map(len, shown.values()))
    lines = [f"{'K' if boundaries else 'kept':>{first}}  {name:>{width}}  {'std. error':>10}  {'documents':>9}"]
    for row in sweep.candidates:
        marks = [
            word
            for word, applies in (
                ("full", variants[row.variant].is_full),
                ("base", variants[row.variant].is_base),
                ("best", row.variant == sweep.best),
                ("chosen", row.variant == sweep.chosen),
                (f"retired after {row.retired_after}", bool(row.retired_after)),
                ("retired by the prior", row.retired_after == 0),
            )
            if applies
        ]
        score, stderr = ("-" if value is None else f"{value:.{digits}f}" for value in (row.score, row.stderr))
        line = f"{shown[row.variant]:>{first}}  {score:>{width}}  {stderr:>10}  {row.documents:9d}  {', '.join(marks)}"
        lines.append(line.rstrip())
    return "\n".join([*lines, *remarks(task), *(f"Note: {warning}" for warning in sweep.warnings)])


def remarks(task: TaskRecord) -> list[str]:
    """Sentences about the choice."""
    sweep = task.sweep
    assert sweep is not None
    digits = _digits(sweep)
    chosen = sweep.candidate(sweep.chosen)
    assert chosen is not None
    kept = Variant.parse(sweep.chosen, task.num_layers)
    rule = "the best score" if sweep.select == "best" else "the smallest K within one standard error of the best"
    said = [f"Chosen: {kept.label}, {rule} among {len(sweep.candidates)} candidates on {chosen.documents} documents."]
    if kept.is_full:
        return [*said, "That is the whole adapter: dropping layers brought nothing on these documents."]
    gain, full = sweep.gain_over_full, f"K = {task.num_layers} (full)"
    if gain is None:
        return [*said, f"{full} was not among the candidates: nothing is said about a gain."]
    if gain.difference is None:
        return [*said, f"It has no document in common with {full}: nothing is said about a gain."]
    side = "better" if gain.difference > 0 else "worse"
    text = f"It scores {abs(gain.difference):.{digits}f} {side} than {full} on the same documents"
    if gain.difference == 0:
        text = f"It scores the same as {full} on the same documents"
    if gain.stderr is None:
        return [*said, f"{text}; one document says nothing about how sure that is."]
    return [*said, f"{text}, with a standard error of {gain.stderr:.{digits}f} (paired)."]


def _digits(sweep: SweepRecord) -> int:
    """Percentages get two digits, shares four."""
    scores = [abs(row.score) for row in sweep.candidates if row.score is not None]
    return 2 if max(scores, default=0.0) > 1.5 else 4
