"""A sweep in text: a line per candidate, what may be said of the choice, and the verdict in one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.schema import CandidateRecord, JointRecord, SweepRecord, TaskRecord
from lm_eval_lora_drop.show.verdict.doubts import says_nothing
from lm_eval_lora_drop.text import decimals_for, decimals_of_column, number, percent, with_error
from lm_eval_lora_drop.variant import Variant

if TYPE_CHECKING:
    from lm_eval_lora_drop.sweep.trust import Gain


def sweep_table(task: TaskRecord) -> str:
    """A line per candidate, in their order, then sentences about the choice, what so many documents can show, and the
    warnings.

    Raises:
        ValueError: the task had no sweep.
    """
    sweep = task.sweep
    if sweep is None or task.metric is None:
        raise ValueError("a table needs a sweep")
    decimals = sweep_decimals(sweep)
    name = str(task.metric)
    width = max(len(name), 10)
    boundaries = sweep.candidate_set == "boundary"
    variants = {row.variant: Variant.parse(row.variant, task.num_layers) for row in sweep.candidates}
    shown = {text: str(kept.boundary) if boundaries else kept.label for text, kept in variants.items()}
    first = max(4, *map(len, shown.values()))
    lines = [f"{'K' if boundaries else 'kept':>{first}}  {name:>{width}}  {'std. error':>10}  {'documents':>9}"]
    for row in sweep.candidates:
        score, stderr = number(row.score, decimals), number(row.stderr, decimals)
        marks = ", ".join(candidate_marks(row, sweep, variants[row.variant]))
        line = f"{shown[row.variant]:>{first}}  {score:>{width}}  {stderr:>10}  {row.documents:9d}  {marks}"
        lines.append(line.rstrip())
    plan = planning(task)
    notes = [f"Note: {warning}" for warning in sweep.warnings]
    return "\n".join([*lines, *remarks(task), *([plan] if plan else []), *notes])


def candidate_marks(row: CandidateRecord, sweep: SweepRecord, kept: Variant) -> list[str]:
    """What is special about a candidate: full, base, best, chosen, eliminated."""
    return [
        word
        for word, applies in (
            ("full", kept.is_full),
            ("base", kept.is_base),
            ("best", row.variant == sweep.best),
            ("chosen", row.variant == sweep.chosen),
            (f"eliminated after {row.eliminated_after}", bool(row.eliminated_after)),
            ("skipped by the prior", row.eliminated_after == 0),
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
    if sweep.jointly is not None:
        case = "mean" if sweep.jointly.how == "mean" else "worst case"
        rule = f"the best {case} over {len(sweep.jointly.others) + 1} tasks (sweep_jointly, {sweep.select})"
    said = [f"Chosen: {kept.label}, {rule}, among {len(sweep.candidates)} candidates on {chosen.documents} documents."]
    if sweep.jointly is not None:
        said.append(_jointly(task, sweep, sweep.jointly))
    said += bound_sentences(task)
    clusters = _clusters(task)
    if clusters is not None:
        said.append(f"Its documents are {clusters} clusters: standard errors are by cluster.")
    if sweep.greedy is not None:
        tried = sum(one.candidates for one in sweep.greedy.rounds)
        said.append(
            f"They stand on the {sweep.greedy.direction} way of {len(sweep.greedy.rounds)} greedy rounds over {tried} "
            f"candidates, on {len(sweep.greedy.doc_ids)} other documents."
        )
    reference = _reference(task, sweep)
    if nothing := says_nothing(sweep):
        return [*said, nothing]
    if kept == reference:
        return [*said, "This is the full adapter: the rule prefers no candidate with fewer layers on these documents."]
    gain, full = sweep.gain_over_full, f"{(reference or Variant.full(task.num_layers)).label} (full)"
    if gain is None:
        return [*said, f"{full} was not among the candidates: nothing is said about a gain."]
    if gain.difference is None:
        return [*said, f"It has no document in common with {full}: nothing is said about a gain."]
    side = "better" if gain.difference > 0 else "worse"
    # Its standard error may be far smaller than those of the scores: "0.0 better, with a standard error of 0.0".
    if gain.stderr and round(gain.stderr, decimals) == 0:
        decimals = decimals_for(gain.stderr)
    text = f"It scores {number(abs(gain.difference), decimals)} {side} than {full} on the same documents"
    if gain.difference == 0:
        text = f"It scores the same as {full} on the same documents"
    if gain.stderr is None:
        return [*said, f"{text}; one document says nothing about how sure that is."]
    return [*said, f"{text}, with a standard error of {number(gain.stderr, decimals)} (paired)."]


def _jointly(task: TaskRecord, sweep: SweepRecord, jointly: JointRecord) -> str:
    tasks = ", ".join(f"{name} {number(one[sweep.chosen], 2, sign=True)}" for name, one in jointly.others.items())
    alone = Variant.parse(jointly.alone, task.num_layers).label
    by_itself = "the same" if jointly.alone == sweep.chosen else alone
    beside = f" Against the full adapter, in standard deviations of a document: {tasks}." if tasks else ""
    return f"All tasks are answered with it; by itself this one would have taken {by_itself}.{beside}"


def bound_sentences(task: TaskRecord) -> list[str]:
    """How the choice stands to each bound of `sweep_select`, by which numbers that was judged, and how sure it is."""
    sweep = task.sweep
    assert sweep is not None
    said = []
    for bound in sweep.bounds:
        also = next((one for one in task.also if one.task == bound.task), None)
        rows = sweep.candidates if also is None else also.candidates
        decimals = decimals_of_column((row.score, row.stderr) for row in rows)
        metric = str(task.metric) if also is None else f"{also.task} {also.metric}"
        of = "full adapter" if bound.of == "full" else "base model"
        text = (
            f"Bound {bound.share:g}: {metric} {number(bound.score, decimals)}, where the {of} has "
            f"{number(bound.reference, decimals)} and {number(bound.limit, decimals)} would do: "
            f"{'kept' if bound.met else 'not kept'}"
        )
        if bound.difference is None:
            said.append(f"{text}, being the {of} itself.")
            continue
        if bound.lower is None:
            said.append(f"{text}; how sure that is cannot be computed.")
            continue
        low = number(bound.lower, decimals)
        limits = f"{low} is the lower limit for all candidates together (95 %, one-sided)"
        risk = (
            "so the bound is shown to hold on documents like these"
            if bound.shown
            else "so these documents do not show that the bound holds on new ones; "
            "sweep_select=smallest_confident:SHARE takes only what they show"
        )
        said.append(f"{text}. {limits}, {risk}.")
    return said


def planning(task: TaskRecord) -> str | None:
    """Which difference of two candidates these documents can show, and how many half of that takes.

    From the chosen candidate against the full adapter; where that is the same, from the best other one. None where the
    record does not say how much they differ: one document, one candidate, an aggregation of the user's own.
    """
    # As in `_gain`: whoever only reads a file need not wait for lm-eval's import.
    import numpy as np

    from lm_eval_lora_drop.statistics.clusters import codes_at
    from lm_eval_lora_drop.statistics.power import detectable_difference, sentence, variation
    from lm_eval_lora_drop.sweep.recorded import RecordedSweep

    try:
        recorded = RecordedSweep.from_record(task)
    except ArgumentError:
        return None
    whole = recorded.candidates.index(recorded.full or recorded.chosen)
    others = [row for row in range(len(recorded.candidates)) if row != whole]
    if not others or recorded.units < 2:
        return None
    values = recorded.values
    chosen = recorded.candidates.index(recorded.chosen)
    other = chosen if chosen != whole else max(others, key=lambda row: float(np.nanmean(values[row])))
    both = np.isfinite(values[whole]) & np.isfinite(values[other])
    codes = codes_at(recorded.codes, np.flatnonzero(both).tolist())
    if not len(codes) or codes.max() < 1:
        return None
    known = variation(values[whole][both], values[other][both], codes)
    if not known.spread > 0:
        return None
    documents = int(both.sum())
    found = detectable_difference(documents, known)
    # One digit, as it is shown: nobody plans for a difference of 0.0617.
    example = float(f"{known.size / 10 if found is None else found / 2:.0e}")
    return sentence(documents, known, example)


def verdict(task: TaskRecord) -> str:
    """One sentence: what is kept, how much smaller that is, and what may be said of it against the full adapter.

    Every place that shows a verdict asks here. What it claims holds for all candidates together (`sweep.trust`), so it
    holds for the one that was chosen as the best of many.
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
    if nothing := says_nothing(task.sweep):
        return nothing
    documents = _documents(task.sweep)
    if kept == _reference(task, task.sweep):
        return f"{what}: on {documents} the rule prefers no {'other candidate' if kept.adapter else 'smaller part'}."
    return f"{what}{_smaller(task)}, {_against_full(task, task.sweep, documents)}.{_fewer_values(task, task.sweep)}"


def _fewer_values(task: TaskRecord, sweep: SweepRecord) -> str:
    """What has to be said of a choice that has a value on fewer documents than full."""
    reference = _reference(task, sweep)
    chosen, full = sweep.candidate(sweep.chosen), sweep.candidate(str(reference)) if reference else None
    if chosen is None or full is None or chosen.documents >= full.documents:
        return ""
    return (
        f" Caution: it has a value on {chosen.documents} documents, full on {full.documents}; the comparison "
        "leaves out the others, where it may have failed."
    )


def _clusters(task: TaskRecord) -> int | None:
    """How many clusters the documents are, None where each stands alone."""
    named = task.validation.clusters if task.validation else None
    if named is None:
        return None
    return len({name for name in named if name is not None}) + sum(name is None for name in named)


def _gain(task: TaskRecord) -> Gain | None:
    """The choice's difference to the full adapter with the simultaneous band; None where it cannot be computed."""
    # Resampling knows the harness's aggregations; whoever only reads a file need not wait for lm-eval's import.
    from lm_eval_lora_drop.sweep.recorded import RecordedSweep
    from lm_eval_lora_drop.sweep.trust import gains_over_full

    try:
        recorded = RecordedSweep.from_record(task)
    except ArgumentError:
        # An aggregation of the user's own: its task could resample, a record cannot.
        return None
    return gains_over_full(recorded).get(recorded.chosen)


def _reference(task: TaskRecord, sweep: SweepRecord) -> Variant | None:
    """The full adapter that the others are held against: of several the first."""
    candidates = (Variant.parse(row.variant, task.num_layers) for row in sweep.candidates)
    return next((one for one in candidates if one.is_full), None)


def _what(kept: Variant) -> str:
    layers = kept.num_layers
    if kept.adapter and not kept.is_base:
        return f"Keep {kept.label} of {layers}" if kept.boundary is not None else f"Keep {kept.label}"
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
    if task.kept.is_base:
        return ""
    return f", {percent(task.dropped_parameters / total)} smaller" if total and task.dropped_parameters else ""


def _documents(sweep: SweepRecord) -> str:
    chosen = sweep.candidate(sweep.chosen)
    assert chosen is not None
    return "1 validation document" if chosen.documents == 1 else f"{chosen.documents} validation documents"


def _against_full(task: TaskRecord, sweep: SweepRecord, documents: str) -> str:
    if sweep.gain_over_full is None or sweep.gain_over_full.difference is None:
        return f"not compared with the full adapter on {documents}"
    decimals = sweep_decimals(sweep)
    gain = _gain(task)
    if gain is None:
        seen = with_error(sweep.gain_over_full.difference, sweep.gain_over_full.stderr, decimals, sign=True)
        return f"{seen} against the full adapter on the {documents} it was chosen on"
    said = {
        "better": "significantly better than the full adapter",
        "worse": "significantly worse than the full adapter",
        "not significant": "not significantly different from the full adapter",
        "too few documents": "too few documents for a test against the full adapter",
    }[gain.evidence.value]
    if gain.evidence.value == "too few documents" and not gain.documents:
        return f"no document of the {documents} has a value under it and the full adapter: they cannot be compared"
    value, low, high = (number(one, decimals, sign=True) for one in (gain.value, gain.low, gain.high))
    # No test sees what the documents lack (docs/explanation/statistics.md): a share
    # of 3 / n is missed in one of twenty samples.
    unseen = f"; a failure on up to {percent(min(1.0, 3 / gain.documents))} of documents may be missing from these"
    better = gain.evidence.value == "better"
    seen = f"{said} on {documents} ({value}; simultaneous 95 % CI {low} to {high}{unseen if better else ''})"
    # An interval around zero is read as "no loss"; it may hold a large one.
    no_test = gain.evidence.value in ("not significant", "too few documents") and gain.low < 0
    return f"{seen}: a loss of up to {number(-gain.low, decimals)} cannot be ruled out" if no_test else seen
