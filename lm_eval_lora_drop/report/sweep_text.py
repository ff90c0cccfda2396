"""A sweep in text: a line per candidate, what may be said of the choice, and the verdict in one sentence."""

from __future__ import annotations

from lm_eval_lora_drop.record.schema import CandidateRecord, DifferenceRecord, SweepRecord, TaskRecord
from lm_eval_lora_drop.rounding import decimals_of_column, number, percent
from lm_eval_lora_drop.variant import Variant


def sweep_table(task: TaskRecord) -> str:
    """A line per candidate, in their order, then sentences about the choice and the warnings.

    Raises:
        ValueError: the task had no sweep.
    """
    sweep = task.sweep
    if sweep is None or task.metric is None:
        raise ValueError("a table needs a sweep")
    decimals = sweep_decimals(sweep)
    name = str(task.metric)
    width = max(len(name), 10)
    boundaries = sweep.family == "boundary"
    variants = {row.variant: Variant.parse(row.variant, task.num_layers) for row in sweep.candidates}
    shown = {text: str(kept.boundary) if boundaries else kept.label for text, kept in variants.items()}
    first = max(4, *map(len, shown.values()))
    lines = [f"{'K' if boundaries else 'kept':>{first}}  {name:>{width}}  {'std. error':>10}  {'documents':>9}"]
    for row in sweep.candidates:
        score, stderr = number(row.score, decimals), number(row.stderr, decimals)
        marks = ", ".join(candidate_marks(row, sweep, variants[row.variant]))
        line = f"{shown[row.variant]:>{first}}  {score:>{width}}  {stderr:>10}  {row.documents:9d}  {marks}"
        lines.append(line.rstrip())
    return "\n".join([*lines, *remarks(task), *(f"Note: {warning}" for warning in sweep.warnings)])


def candidate_marks(row: CandidateRecord, sweep: SweepRecord, kept: Variant) -> list[str]:
    """What is special about a candidate: full, base, best, chosen, retired."""
    return [
        word
        for word, applies in (
            ("full", kept.is_full),
            ("base", kept.is_base),
            ("best", row.variant == sweep.best),
            ("chosen", row.variant == sweep.chosen),
            (f"retired after {row.retired_after}", bool(row.retired_after)),
            ("retired by the prior", row.retired_after == 0),
        )
        if applies
    ]


def sweep_decimals(sweep: SweepRecord) -> int:
    """How many decimals the sweep's scores are shown with, everywhere."""
    return decimals_of_column((row.score, row.stderr) for row in sweep.candidates)


def remarks(task: TaskRecord) -> list[str]:
    """Sentences about the choice."""
    sweep = task.sweep
    assert sweep is not None
    decimals = sweep_decimals(sweep)
    chosen = sweep.candidate(sweep.chosen)
    assert chosen is not None
    kept = Variant.parse(sweep.chosen, task.num_layers)
    rule = "the best score" if sweep.select == "best" else f"by sweep_select={sweep.select}"
    said = [f"Chosen: {kept.label}, {rule}, among {len(sweep.candidates)} candidates on {chosen.documents} documents."]
    if kept.is_full:
        return [*said, "That is the whole adapter: dropping layers brought nothing on these documents."]
    gain, full = sweep.gain_over_full, f"K = {task.num_layers} (full)"
    if gain is None:
        return [*said, f"{full} was not among the candidates: nothing is said about a gain."]
    if gain.difference is None:
        return [*said, f"It has no document in common with {full}: nothing is said about a gain."]
    side = "better" if gain.difference > 0 else "worse"
    text = f"It scores {number(abs(gain.difference), decimals)} {side} than {full} on the same documents"
    if gain.difference == 0:
        text = f"It scores the same as {full} on the same documents"
    if gain.stderr is None:
        return [*said, f"{text}; one document says nothing about how sure that is."]
    return [*said, f"{text}, with a standard error of {number(gain.stderr, decimals)} (paired)."]


def verdict(task: TaskRecord) -> str:
    """One sentence: what is kept, how much smaller that is, and what may be said of it against the whole adapter.

    Every place that shows a verdict asks here. A difference of less than two of its standard errors is none: a choice
    was made on the same documents, so one that is larger is said with that reservation.
    """
    kept = task.kept
    what = _what(kept)
    if task.sweep is None:
        origin = {
            "given": "as given",
            "default": "the paper's default, found on no document",
            "probe": "found by the probe of the layers, without comparing scores",
            "recorded": "as another run chose",
        }
        return f"{what}{_smaller(task)}: {origin.get(task.method, task.method)}."
    if kept.is_full:
        return f"{what}: on {_documents(task)} no smaller part of the adapter was chosen."
    return f"{what}{_smaller(task)}, {_against_full(task, task.sweep.gain_over_full)} on {_documents(task)}."


def _what(kept: Variant) -> str:
    layers = kept.num_layers
    if kept.is_full:
        return f"Keep all {layers} layers"
    if kept.is_base:
        return "Keep no layer, the base model alone"
    if kept.boundary is not None:
        return f"Keep the bottom {kept.boundary} of {layers} layers"
    # A variant of strengths or kinds of module may keep something of every layer.
    return f"Keep {kept.label} ({len(kept.kept_layers)} of {layers} layers)"


def _smaller(task: TaskRecord) -> str:
    total = task.kept_parameters + task.dropped_parameters
    return f", {percent(task.dropped_parameters / total)} smaller" if total and task.dropped_parameters else ""


def _documents(task: TaskRecord) -> str:
    assert task.sweep is not None
    chosen = task.sweep.candidate(task.sweep.chosen)
    assert chosen is not None
    return "1 validation document" if chosen.documents == 1 else f"{chosen.documents} validation documents"


def _against_full(task: TaskRecord, gain: DifferenceRecord | None) -> str:
    if gain is None or gain.difference is None:
        return "not compared with the whole adapter"
    if gain.difference == 0 and not gain.stderr:
        return "scoring as the whole adapter does"
    if gain.stderr is None or abs(gain.difference) < 2 * gain.stderr:
        return "not distinguishable from the whole adapter"
    assert task.sweep is not None
    size = number(abs(gain.difference), sweep_decimals(task.sweep))
    if gain.difference < 0:
        return f"{size} worse than the whole adapter"
    return f"{size} better than the whole adapter (chosen for it: expect less elsewhere)"
