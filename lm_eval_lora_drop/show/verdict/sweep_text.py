"""A sweep in text: a line per candidate, sentences on the choice, and the verdict in one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.schema import AlsoRecord, CandidateRecord, JointRecord, SweepRecord, TaskRecord
from lm_eval_lora_drop.show.tables import table
from lm_eval_lora_drop.show.verdict.doubts import inconclusive
from lm_eval_lora_drop.text import decimals_of_column, decimals_of_difference, number, percent, with_error
from lm_eval_lora_drop.variant import Variant

if TYPE_CHECKING:
    from lm_eval_lora_drop.sweep.trust import Gain


MOST_ROWS = 5
"""Candidates in a log: the whole curve is in the figure and in the results file."""


def sweep_table(task: TaskRecord, most: int = MOST_ROWS) -> str:
    """A line per candidate, in their order, then the choice, what can be planned from these documents, and warnings.

    Of more than `most` candidates full, base, best, chosen and evenly spread others are shown.

    Raises:
        ValueError: the task had no sweep.
    """
    # numpy and scipy, for which a reader of a file's verdict need not wait.
    from lm_eval_lora_drop.show.verdict.planning import planning

    sweep = task.sweep
    if sweep is None or task.metric is None:
        raise ValueError("a table needs a sweep")
    decimals = sweep_decimals(sweep)
    boundaries = sweep.candidate_set == "boundary"
    rows = []
    for row in sweep.candidates:
        kept = Variant.parse(row.variant, task.num_layers)
        marks = ", ".join(candidate_marks(row, sweep, kept))
        name = str(kept.boundary) if boundaries else kept.label
        rows.append([name, number(row.score, decimals), number(row.stderr, decimals), str(row.documents), marks])
    named = [place for place, row in enumerate(rows) if row[-1] and not row[-1].startswith("eliminated")]
    others = [place for place in range(len(rows)) if place not in named]
    spread = [(2 * i + 1) * len(others) // (2 * (most - len(named))) for i in range(max(0, most - len(named)))]
    if len(rows) > most:
        rows = [rows[place] for place in sorted([*named, *(others[i] for i in spread)])]
    headings = ["K" if boundaries else "kept", str(task.metric), "std. error", "documents", ""]
    said = [*remarks(task), planning(task), *(f"Note: {warning}" for warning in sweep.warnings)]
    return "\n".join([table(headings, rows, left=["kept", ""]), *filter(None, said)])


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
        )
        if applies
    ]


def sweep_decimals(sweep: SweepRecord | AlsoRecord) -> int:
    """How many decimals the scores of the candidates are shown with, everywhere."""
    return decimals_of_column((row.score, row.stderr) for row in sweep.candidates)


def remarks(task: TaskRecord) -> list[str]:
    """Sentences about the choice: the rule, what it rests on, the verdict."""
    sweep = task.sweep
    assert sweep is not None
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
    if sweep.strategy == "refine":
        pairs = sum(len(row.items) for row in sweep.candidates)
        said.append(
            f"Refine asked {pairs:,} (candidate, document) pairs; {len(sweep.not_asked)} of "
            f"{len(sweep.candidates) + len(sweep.not_asked)} candidates were not asked."
        )
    said += bound_sentences(task)
    clusters = _clusters(task)
    if clusters is not None:
        said.append(f"The documents form {clusters} clusters; standard errors are by cluster.")
    if sweep.greedy is not None:
        tried = sum(one.candidates for one in sweep.greedy.rounds)
        way = sweep.greedy.direction
        rounds = "generations of CMA-ES" if way == "cma_es" else f"{way} greedy rounds"
        said.append(
            f"The candidates come from {len(sweep.greedy.rounds)} {rounds} over {tried} candidates, on "
            f"{len(sweep.greedy.doc_ids)} other documents."
        )
    return [*said, verdict(task)]


def _jointly(task: TaskRecord, sweep: SweepRecord, jointly: JointRecord) -> str:
    tasks = ", ".join(f"{name} {number(one[sweep.chosen], 2, sign=True)}" for name, one in jointly.others.items())
    alone = Variant.parse(jointly.alone, task.num_layers).label
    by_itself = "the same" if jointly.alone == sweep.chosen else alone
    beside = f" Difference to the full adapter, in standard deviations of a document: {tasks}." if tasks else ""
    return f"All tasks are answered with it; this task alone would have chosen {by_itself}.{beside}"


def bound_sentences(task: TaskRecord) -> list[str]:
    """Whether the choice meets each threshold of `sweep_select`, with the numbers and the confidence limit."""
    sweep = task.sweep
    assert sweep is not None
    said = []
    for bound in sweep.bounds:
        also = next((one for one in task.also if one.task == bound.task), None)
        decimals = sweep_decimals(also or sweep)
        metric = str(task.metric) if also is None else f"{also.task} {also.metric}"
        of = "full adapter" if bound.of == "full" else "base model"
        text = (
            f"Threshold {100 * bound.share:g} % of the {of}: {'met' if bound.met else 'not met'} ({metric} "
            f"{number(bound.score, decimals)}, needed {number(bound.limit, decimals)}, {of} "
            f"{number(bound.reference, decimals)})"
        )
        if bound.difference is None:
            said.append(f"{text}. This is the {of} itself.")
        elif bound.lower is None:
            said.append(f"{text}. No confidence limit can be computed.")
        else:
            meets = "meets the threshold" if bound.shown else "does not meet it"
            more = "" if bound.shown else " sweep_select=smallest_confident:SHARE requires it."
            limit = f"Lower 95 % confidence limit, simultaneous over candidates: {number(bound.lower, decimals)}"
            said.append(f"{text}. {limit}, which {meets}.{more}")
    return said


def verdict(task: TaskRecord) -> str:
    """What is kept, how much smaller that is, and its difference to the full adapter, in a sentence or two.

    Every place that shows a verdict calls this. The difference is tested simultaneously over all candidates
    (`sweep.trust`), so the claim holds for the one that was chosen as the best of many.
    """
    kept = task.kept
    what = f"{_what(kept)}{_smaller(task)}"
    if task.sweep is None:
        boundary = "full" if kept.is_full else "base" if kept.is_base else task.boundary
        option = f"layers={task.variant}" if boundary is None or kept.adapter else f"boundary={boundary}"
        origin = {
            "given": f" ({option})",
            "default": ": the paper's default boundary; no documents were used",
            "probe": ": chosen by the probe; no scores were compared",
            "recorded": ": the choice of another run",
        }
        return f"{what}{origin.get(task.method, f': {task.method}')}."
    if nothing := inconclusive(task.sweep):
        return nothing
    documents = _documents(task.sweep)
    if kept == _reference(task, task.sweep):
        return f"{what}: {_why_full(task, task.sweep)} on {documents}."
    return f"{what}: {_against_full(task, task.sweep, documents)}.{_fewer_values(task, task.sweep)}"


def _why_full(task: TaskRecord, sweep: SweepRecord) -> str:
    """Rules that smooth scores, or allow for chance, may choose full although another scored higher."""
    full = sweep.candidate(sweep.chosen)
    assert task.metric is not None
    if full is None or full.score is None:
        return "the full adapter was chosen"
    higher = [row for row in sweep.candidates if row.score is not None and task.metric.better(row.score, full.score)]
    other = "K" if sweep.candidate_set == "boundary" else "candidate"
    return f"sweep_select={sweep.select} chose the full adapter" if higher else f"no other {other} scored higher"


def _fewer_values(task: TaskRecord, sweep: SweepRecord) -> str:
    """A warning where the choice has a value on fewer documents than full."""
    reference = _reference(task, sweep)
    chosen, full = sweep.candidate(sweep.chosen), sweep.candidate(str(reference)) if reference else None
    if chosen is None or full is None or chosen.documents >= full.documents:
        return ""
    return (
        f" Caution: it has a value on {chosen.documents} documents, full on {full.documents}. The comparison "
        "omits the others, on which it may have failed."
    )


def _clusters(task: TaskRecord) -> int | None:
    """How many clusters the documents are, None where each stands alone."""
    named = task.validation.clusters if task.validation else None
    if named is None:
        return None
    return len({name for name in named if name is not None}) + sum(name is None for name in named)


def _gain(task: TaskRecord) -> Gain | None:
    """The choice's difference to the full adapter with the simultaneous band; None where it cannot be computed."""
    # numpy and scipy, for which a reader of a file's record need not wait.
    from lm_eval_lora_drop.sweep.recorded import RecordedSweep
    from lm_eval_lora_drop.sweep.trust import gains_over_full

    try:
        recorded = RecordedSweep.from_record(task)
    except ArgumentError:
        # An aggregation of the user's own: its task could resample, a record cannot.
        return None
    return gains_over_full(recorded).get(recorded.chosen)


def _reference(task: TaskRecord, sweep: SweepRecord) -> Variant | None:
    """The full adapter among the candidates; of several adapters the first."""
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
        return f"no test against the full adapter: none of the {documents} has a value for both"
    if gain.value and round(gain.value, decimals) == 0:  # scores of ten points, a difference of a hundredth
        decimals = decimals_of_difference(gain.value, (gain.low, gain.high))
    value, low, high = (number(one, decimals, sign=True) for one in (gain.value, gain.low, gain.high))
    seen = f"{said} on {documents} ({value}; simultaneous 95 % CI {low} to {high})"
    if gain.evidence.value == "better":
        # No test sees what the documents lack (docs/explanation/statistics.md): a share
        # of 3 / n is missed in one of twenty samples.
        return f"{seen}. Failures on up to {percent(min(1.0, 3 / gain.documents))} of documents may not occur in these"
    # An interval around zero is read as "no loss"; it may hold a large one.
    no_test = gain.evidence.value != "worse" and gain.low < 0
    return f"{seen}. A loss of up to {number(-gain.low, decimals)} cannot be ruled out" if no_test else seen
