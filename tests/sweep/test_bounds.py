"""The choice under bounds: against the rule written out in loops, over random scores of either direction and sign."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from lm_eval.api.metrics import mean

from lm_eval_lora_drop.backends.checks import check_before_loading
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.options import parse_model_args
from lm_eval_lora_drop.record.metric import MetricSpec
from lm_eval_lora_drop.record.schema import AlsoRecord, CandidateRecord, ValidationRecord, as_json, read_task
from lm_eval_lora_drop.show.verdict.sweep_text import sweep_table, verdict
from lm_eval_lora_drop.show.verdict.trade_text import trade_table
from lm_eval_lora_drop.statistics.aggregation import Aggregation
from lm_eval_lora_drop.sweep.candidates import make_candidates
from lm_eval_lora_drop.sweep.recorded import RecordedSweep
from lm_eval_lora_drop.sweep.tradeoffs.bounds import (
    Bound,
    BoundedCriterion,
    BoundedRule,
    ScoredCandidates,
    choose_within,
    parse_bounded,
)
from lm_eval_lora_drop.sweep.trust import trust
from lm_eval_lora_drop.variant import AdapterShape
from tests.candidates.records import recorded


class MeanScorer:
    """What a sweep's scorer is to whoever compares candidates in pairs."""

    aggregation = Aggregation(mean)
    resamples = 10

    def __init__(self, higher_is_better=True):
        self.metric = MetricSpec("acc", "none", higher_is_better)


def rows_of(candidate_set, rng, *, shift=0.0, documents=12):
    items = rng.integers(0, 4, (len(candidate_set.variants), documents)) + shift
    return tuple(
        CandidateRecord(
            variant=str(v), score=float(row.mean()), stderr=0.1, documents=documents, items=tuple(row.tolist())
        )
        for v, row in zip(candidate_set.variants, items.astype(float), strict=True)
    )


def a_task(seed, *, higher=True, shift=0.0):
    """A record of boundaries of 5 layers with scores on another task, nothing chosen by bounds yet."""
    rng = np.random.default_rng(seed)
    candidate_set = make_candidates(["boundary", "modules"], AdapterShape(5, ("q_proj", "up_proj"), 4))
    record = recorded(candidate_set, documents=12, seed=seed, higher_is_better=higher)
    rows = rows_of(candidate_set, rng, shift=shift)
    other = rows_of(candidate_set, rng, shift=shift)
    best = max(rows, key=lambda row: row.score if higher else -row.score).variant
    validation = ValidationRecord(split="validation", doc_ids=tuple(range(12)))
    also = AlsoRecord(
        task="other",
        metric=MetricSpec("acc", "none", higher),
        aggregation="mean",
        validation=validation,
        candidates=other,
    )
    parameters = {str(v): int(rng.integers(1, 9)) * len(v.kept_layers) for v in candidate_set.variants}
    return replace(
        record,
        variant=best,
        sweep=replace(record.sweep, candidates=rows, chosen=best, best=best),
        also=(also,),
        candidate_parameters=parameters,
    )


def bounded(record, rule, higher=True):
    own = ScoredCandidates(record.sweep.candidates, MeanScorer(higher), None)
    others = {one.task: ScoredCandidates(one.candidates, MeanScorer(higher), None) for one in record.also}
    within = BoundedCriterion.of(
        rule, record.sweep, record.also, record.candidate_parameters, record.num_layers, sign=1 if higher else -1
    )
    sweep = choose_within(record.sweep, rule, own, others, within)
    return replace(record, variant=sweep.chosen, sweep=sweep)


def by_hand(record, rule, higher):
    """The rule in loops and in the metric's own direction."""
    own = {row.variant: row.score for row in record.sweep.candidates}
    other = {row.variant: row.score for row in record.also[0].candidates}
    full, base = record.sweep.candidates[0].variant, "none"
    fitting = []
    for name in own:
        fits = True
        for bound in rule.bounds:
            scores = own if bound.task is None else other
            reference = scores[full if bound.of == "full" else base]
            room = (1 - bound.share) * abs(reference) + 1e-9
            fits &= scores[name] >= reference - room if higher else scores[name] <= reference + room
        if fits:
            fitting.append(name)
    if not fitting:
        return full
    if rule.goal == "smallest":
        least = min(record.candidate_parameters[name] for name in fitting)
        fitting = [name for name in fitting if record.candidate_parameters[name] == least]
    signed = {name: own[name] if higher else -own[name] for name in fitting}
    return next(name for name in fitting if signed[name] == max(signed.values()))


RULES = [
    "smallest:1",
    "smallest:0.9",
    "smallest:.5:base",
    "smallest:0.8+0.9@other",
    "best:0.95@other",
    "best:1@other:base+0.9@other",
]


@pytest.mark.parametrize(("higher", "shift"), [(True, 0.0), (False, 0.0), (True, -5.0), (False, -5.0)])
def test_the_choice_is_the_rule_written_out(higher, shift):
    """Accuracies, error rates, log-likelihoods, and numbers on either side of nothing."""
    chosen = set()
    for seed, text in itertools.product(range(4), RULES):
        rule = parse_bounded(text)
        found = bounded(a_task(seed, higher=higher, shift=shift), rule, higher)
        assert found.sweep.chosen == by_hand(found, rule, higher), (seed, text)
        assert all(one.met for one in found.sweep.bounds) or any(
            "no candidate is within" in w for w in found.sweep.warnings
        )
        chosen.add(found.sweep.chosen)
    assert len(chosen) > 5


def test_the_whole_adapter_keeps_its_own_bound_whatever_the_sign():
    for reference in (0.8, -1.5, 0.0):
        one = np.array([[reference]])
        assert Bound(0.5).holds(one, one)
    assert Bound(0.99).limit(np.array(0.8)) == pytest.approx(0.792)
    assert -Bound(0.99).limit(np.array(-0.2)) == pytest.approx(0.202)
    assert Bound(0.99).limit(np.array(-1.5)) == pytest.approx(-1.515)
    assert not Bound(0.5).holds(np.array([[np.nan]]), np.array([[1.0]]))


def test_where_nothing_fits_the_whole_adapter_is_kept_and_said():
    record = a_task(3)
    full, base = record.sweep.candidates[0].variant, "none"
    apart = {full: 1.0, base: 3.0}
    rows = tuple(replace(row, score=apart.get(row.variant, 0.5)) for row in record.sweep.candidates)
    other = tuple(replace(row, score=4 - apart.get(row.variant, 3.5)) for row in record.also[0].candidates)
    record = replace(
        record,
        sweep=replace(record.sweep, candidates=rows),
        also=(replace(record.also[0], candidates=other),),
    )
    # The optimised score of the base model and the other one of the full adapter: nobody has both.
    found = bounded(record, parse_bounded("smallest:0.9:base+0.9@other"))
    assert found.sweep.chosen == full
    assert "no candidate is within all bounds of sweep_select=smallest:0.9:base+0.9@other" in found.sweep.warnings[-1]
    assert [one.met for one in found.sweep.bounds] == [False, True]
    assert "not met" in sweep_table(found)


def test_the_text_says_how_a_bound_was_judged_and_the_record_is_read_back():
    record = bounded(a_task(0), parse_bounded("smallest:0.8+0.9@other"))
    table = sweep_table(record)
    said = [line for line in table.splitlines() if line.startswith("Threshold")]
    assert len(said) == 2
    assert "other acc" in said[1]
    for line, told in zip(said, record.sweep.bounds, strict=True):
        assert ("Lower 95 % confidence limit" in line) is (told.difference is not None)
    assert "by sweep_select=smallest:0.8+0.9@other" in table
    assert "the choice is by sweep_select" in trade_table(record)
    assert verdict(record).startswith("Keep")
    assert read_task(as_json(record), "here", "tasks.toy") == record


def nested(rng, documents, losing):
    """Boundaries of 10 layers, each losing a few more documents than the one before; scores of 0 and 1."""
    full = (rng.random(documents) < 0.7).astype(float)
    when = np.floor(rng.exponential(1 / losing, documents))
    return np.array([np.where(when < row, 0.0, full) for row in range(11)])


@pytest.mark.parametrize("documents", [20, 100])
def test_a_confident_choice_breaks_its_bound_in_at_most_one_of_twenty_sweeps(documents):
    """Each layer costs 0.2 % of what is right: five layers are within 0.99, and the plain rule takes more."""
    family = make_candidates(["boundary"], AdapterShape(10, ("q_proj",), 4))
    broken = {"smallest": 0, "smallest_confident": 0, "shown": 0}
    for seed in range(60):
        values = nested(np.random.default_rng(seed), documents, 0.002)
        record = recorded(family, documents=documents, seed=0, higher_is_better=True)
        rows = tuple(
            replace(one, score=float(row.mean()), items=tuple(row.tolist()), documents=documents)
            for one, row in zip(record.sweep.candidates, values, strict=True)
        )
        sizes = {row.variant: 10 - place for place, row in enumerate(rows)}
        sweep = replace(record.sweep, candidates=rows, chosen=rows[0].variant, best=rows[0].variant)
        record = replace(record, sweep=sweep, candidate_parameters=sizes)
        for goal in ("smallest", "smallest_confident"):
            found = bounded(record, parse_bounded(f"{goal}:0.99"))
            false = sizes[found.sweep.chosen] < 5
            broken[goal] += false
            broken["shown"] += false and found.sweep.bounds[0].shown
    assert broken["smallest"] > 15
    assert broken["smallest_confident"] <= 3
    assert broken["shown"] <= 3


def test_a_confident_choice_takes_what_the_documents_show():
    """900 documents without a loss: no more than 0.5 % can be lost."""
    family = make_candidates(["boundary"], AdapterShape(2, ("q_proj",), 4))
    record = recorded(family, documents=900, seed=0, higher_is_better=True)
    full = (1.0,) * 850 + (0.0,) * 50
    items = (full, full, (0.0,) * 900)
    rows = tuple(
        replace(one, score=sum(row) / 900, items=row, documents=900)
        for one, row in zip(record.sweep.candidates, items, strict=True)
    )
    sizes = {row.variant: 2 - place for place, row in enumerate(rows)}
    record = replace(record, sweep=replace(record.sweep, candidates=rows), candidate_parameters=sizes)
    found = bounded(record, parse_bounded("smallest_confident:0.99"))
    assert found.sweep.chosen == rows[1].variant
    assert found.sweep.bounds[0].shown
    assert RecordedSweep.from_record(found).choose(np.array([[850 / 900, 850 / 900, 0.0]]), np.ones((1, 900), int)) == [
        1
    ]


def test_resamples_choose_by_the_same_rule():
    record = bounded(a_task(1), parse_bounded("smallest:0.9+0.8@other"))
    sweep = RecordedSweep.from_record(record)
    counts = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), size=40)
    rows = sweep.choose(sweep.scores(counts), counts)
    for row, times in zip(rows, counts, strict=True):
        drawn = tuple(replace(one, score=float(np.repeat(one.items, times).mean())) for one in record.sweep.candidates)
        again = replace(record, sweep=replace(record.sweep, candidates=drawn))
        assert str(sweep.candidates[row]) == by_hand(again, parse_bounded(record.sweep.select), True)
    assert set(trust(sweep, resamples=50).choice_share) <= set(sweep.candidates)
    with pytest.raises(ArgumentError, match="lacks some"):
        RecordedSweep.from_record(replace(record, also=()))
    with pytest.raises(ArgumentError, match="candidate_parameters"):
        RecordedSweep.from_record(replace(record, candidate_parameters={}))


def test_the_notation_is_read_and_printed():
    rule = parse_bounded("smallest:0.99+0.95@gsm8k+0.9@t/x.yaml:base")
    assert rule == BoundedRule("smallest", (Bound(0.99), Bound(0.95, "gsm8k"), Bound(0.9, "t/x.yaml", "base")))
    assert str(rule) == "smallest:0.99+0.95@gsm8k+0.9@t/x.yaml:base"
    assert rule.named({"gsm8k": "gsm8k", "t/x.yaml": "x"}).bounds[2].task == "x"
    assert parse_bounded("best") is None
    assert parse_bounded("smooth_one_se") is None


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("smallest", "a bound must be SHARE"),
        ("smallest:", "a bound must be SHARE"),
        ("smallest:0", "above 0 and at most 1, got '0'"),
        ("smallest:1.01", "above 0 and at most 1, got '1.01'"),
        ("smallest:99", "got '99'"),
        ("smallest:nan", "got 'nan'"),
        ("smallest:0.9@", "got '0.9@'"),
        ("smallest:0.9+0.8", "bound every score once"),
        ("best:0.9", "changes nothing about the best of it"),
        ("best:", "a bound must be SHARE"),
        ("pareto:0.99", "must be one of smooth, best.* With a bound: smallest:0.99"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(select, message):
    with pytest.raises(ArgumentError, match=message):
        parse_bounded(parse_model_args({"sweep_select": select}, ())[0].sweep_select or "")


@pytest.mark.parametrize(
    ("model_args", "message"),
    [
        ({"sweep_select": "best:0.9@gsm8k"}, "a task that sweep_also scores .which was not given., got 'gsm8k'"),
        (
            {"sweep_select": "best:0.9@gsm8", "sweep_also": "gsm8k"},
            "which names gsm8k., got 'gsm8'",
        ),
        ({"sweep_select": "smallest:0.9", "sweep_strategy": "racing"}, "must be best with sweep_strategy=racing"),
        ({"sweep_select": "smallest:0.9", "sweep_boundaries": "0-3"}, "got no full among them"),
        ({"sweep_select": "smallest:0.9:base", "sweep_boundaries": "1-4"}, "got no base among them"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_a_model_is_loaded(model_args, message, tmp_path):
    args, _ = parse_model_args({**model_args, "sweep_dir": str(tmp_path)}, ())
    with pytest.raises(ArgumentError, match=message):
        check_before_loading(args, AdapterShape(4))
