"""Runs a sweep: plan -> runner -> scores -> journal -> plan ... -> selection."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import msgspec

from lm_eval_lora_drop.harness.documents import Answer, Document
from lm_eval_lora_drop.record.events import Answered, Broadcast, RoundStarted, SweepEnded, SweepStarted
from lm_eval_lora_drop.record.journal import Journal
from lm_eval_lora_drop.record.plain import plain
from lm_eval_lora_drop.record.schema import CandidateRecord, DifferenceRecord, RacingRecord, SweepRecord
from lm_eval_lora_drop.statistics.clusters import Codes, cluster_codes, codes_at
from lm_eval_lora_drop.statistics.paired import paired_difference
from lm_eval_lora_drop.sweep.backend import Pass, Peers, Runner, Work
from lm_eval_lora_drop.sweep.candidates import CandidateSet
from lm_eval_lora_drop.sweep.score import Scorer
from lm_eval_lora_drop.sweep.select import Choice, choose, places_of
from lm_eval_lora_drop.sweep.strategies.racing import Race, RacingSettings
from lm_eval_lora_drop.sweep.strategies.refine import Refine
from lm_eval_lora_drop.sweep.strategies.table import Table
from lm_eval_lora_drop.text import logger
from lm_eval_lora_drop.variant import Variant

log = logger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class SweepSettings:
    """What is compared, and how the choice is made.

    `strategy` is exhaustive, racing or refine; `select` is one of `options.SELECTIONS`; `seed` is the order in which
    racing takes the documents, and `racing` how careful it is.
    """

    candidates: CandidateSet
    strategy: str = "exhaustive"
    select: str = "best"
    seed: int = 0
    racing: RacingSettings = field(default_factory=RacingSettings)


def run_sweep(
    documents: Sequence[Document],
    prepare: Callable[[], Pass],
    scorer: Scorer,
    settings: SweepSettings,
    journal: Journal,
    *,
    peers: Peers,
    listeners: Broadcast | None = None,
) -> SweepRecord:
    """Score every candidate on `documents` and choose one.

    `prepare` says how answers are got; it is called once, when something is asked that the journal does not hold.

    Answers in the journal are reused. With several processes each answers its share of the documents, and all
    of them end with the same result; an error in one is raised in all.

    Raises:
        ArgumentError: the journal belongs to other settings or cannot be written; no document has a score.
    """
    listeners = listeners or Broadcast()
    candidates = settings.candidates.variants
    table = Table(candidates, len(documents))
    known = _recall(documents, scorer, journal, table, peers)
    listeners.tell(SweepStarted(journal.task, candidates, len(documents), scorer, journal.path, known))
    clusters = clusters_of(documents)
    plan: Exhaustive | Race | Refine = Exhaustive(table)
    if settings.strategy == "refine":
        plan = Refine(table, lambda some: some[_choice(table, scorer, settings, plan, some, clusters).best])
    elif settings.strategy == "racing":
        plan = Race(
            table,
            scorer.aggregation,
            sign=scorer.metric.sign,
            full=settings.candidates.full,
            seed=settings.seed,
            settings=settings.racing,
            bounds=scorer.metric.range,
        )
    way: Pass | None = None
    try:
        for wanted in plan.rounds():
            if way is None and _lacking(wanted, table):
                way = prepare()
                _take_in(way.answers, documents, scorer, journal, table, peers, listeners)
            work = _share(documents, _lacking(wanted, table), peers)
            listeners.tell(RoundStarted(sum(len(item.variants) for item in work), tuple(wanted)))

            def answer(work: Sequence[Work] = work, way: Pass | None = way) -> list[tuple[Variant, int, Any]]:
                return list(_answer(documents, work, way.runner, scorer, journal, listeners)) if work and way else []

            for pairs in in_step(peers, answer):
                table.set(pairs)
    finally:
        listeners.tell(SweepEnded())
    return _record(table, scorer, settings, plan, way, clusters)


def clusters_of(documents: Sequence[Document]) -> Codes | None:
    """Which documents belong together; None where each stands alone."""
    keys = [document.cluster for document in documents]
    return cluster_codes(keys) if any(key is not None for key in keys) else None


class Exhaustive:
    """Every candidate meets every document, in one round."""

    eliminated: Mapping[Variant, int] = {}

    def __init__(self, table: Table) -> None:
        self._table = table

    def rounds(self) -> Iterator[dict[Variant, Sequence[int]]]:
        """Rounds of variant -> positions of documents."""
        yield {variant: range(self._table.documents) for variant in self._table.candidates}

    def positions(self, _: Variant) -> Sequence[int]:
        """The documents that a candidate met: all."""
        return range(self._table.documents)

    def to_record(self) -> None:
        """Nothing to add to the results file."""


def in_step(peers: Peers, work: Callable[[], T]) -> list[T]:
    """Do this rank's `work` and return that of all ranks, on all ranks.

    An error is gathered like a result, so that no rank waits for one that has stopped: the rank where it happened
    raises it, the others say where.
    """
    failure: Exception | None = None
    outcome: tuple[str, Any]
    try:
        outcome = ("ok", work())
    except Exception as error:  # noqa: BLE001
        failure = error
        outcome = ("error", f"{type(error).__name__}: {error}")
    outcomes = peers.all_gather_object(outcome)
    if failure is not None:
        raise failure
    for rank, (status, payload) in enumerate(outcomes):
        if status == "error":
            raise RuntimeError(f"the sweep has stopped because process {rank} of {peers.world_size} failed: {payload}")
    return [payload for _, payload in outcomes]


def _recall(
    documents: Sequence[Document], scorer: Scorer, journal: Journal, table: Table, peers: Peers
) -> list[tuple[Variant, int, Any]]:
    """Fill the table from the journal and return what was found; machines that share no folder tell each other what
    theirs holds."""
    journaled: dict[tuple[str, str], tuple[Any, ...]] = {}
    for found in in_step(peers, journal.read):
        journaled.update(found)
    names = {variant: str(variant) for variant in table.candidates}
    pairs = [
        (variant, position, document, journaled[name, document.key])
        for position, document in enumerate(documents)
        for variant, name in names.items()
        if (name, document.key) in journaled
    ]
    # A response count that does not fit is no answer to these requests.
    pairs = [pair for pair in pairs if len(pair[3]) == len(pair[2].requests)]
    if not pairs:
        return []
    log.info("%d of %d answers come from the journal", len(pairs), len(documents) * len(table.candidates))
    known: list[tuple[Variant, int, Any]] = []
    for items in in_step(
        peers,
        lambda: [
            (variant, position, scorer.item(Answer(variant, document, responses)))
            for variant, position, document, responses in pairs[peers.rank :: peers.world_size]
        ],
    ):
        known += items
    table.set(known)
    return known


def _take_in(
    answers: Sequence[Answer],
    documents: Sequence[Document],
    scorer: Scorer,
    journal: Journal,
    table: Table,
    peers: Peers,
    listeners: Broadcast,
) -> None:
    """Use rank 0's copy of answers that were computed on all ranks."""
    position_of = {document.key: position for position, document in enumerate(documents)}

    def first() -> list[tuple[Variant, int, Any]]:
        if peers.rank != 0:
            return []
        new = [
            answer
            for answer in answers
            if answer.variant in table.candidates
            and answer.document.key in position_of
            and not table.answered(answer.variant, position_of[answer.document.key])
        ]
        if new:
            journal.append(new)
        return [(answer.variant, position_of[answer.document.key], scorer.item(answer)) for answer in new]

    pairs = in_step(peers, first)[0]
    table.set(pairs)
    # Listeners count these too.
    listeners.tell(Answered(pairs))


def _lacking(wanted: Mapping[Variant, Sequence[int]], table: Table) -> dict[int, list[Variant]]:
    """Position of a document -> the variants that it still lacks an answer under, in the order of the candidates, so
    that the engine meets them from most kept to least."""
    lacking: dict[int, list[Variant]] = {}
    for variant in table.candidates:
        for position in wanted.get(variant, ()):
            if not table.answered(variant, position):
                lacking.setdefault(position, []).append(variant)
    return lacking


def _share(documents: Sequence[Document], lacking: Mapping[int, Sequence[Variant]], peers: Peers) -> list[Work]:
    """This rank's part of a round: every n-th of the documents that still lack an answer."""
    mine = sorted(lacking)[peers.rank :: peers.world_size]
    return [Work(documents[position], tuple(lacking[position])) for position in mine]


def _answer(
    documents: Sequence[Document],
    work: Sequence[Work],
    runner: Runner,
    scorer: Scorer,
    journal: Journal,
    listeners: Broadcast,
) -> Iterator[tuple[Variant, int, Any]]:
    position_of = {document.doc_id: position for position, document in enumerate(documents)}
    start = time.perf_counter()
    for answers in runner(work):
        journal.append(answers, time.perf_counter() - start)
        pairs = [(answer.variant, position_of[answer.document.doc_id], scorer.item(answer)) for answer in answers]
        listeners.tell(Answered(pairs))
        yield from pairs
        start = time.perf_counter()


def _record(
    table: Table,
    scorer: Scorer,
    settings: SweepSettings,
    plan: Exhaustive | Race | Refine,
    way: Pass | None,
    clusters: Codes | None,
) -> SweepRecord:
    rows = []
    asked = [variant for variant in table.candidates if plan.positions(variant)]
    for variant in asked:
        positions = plan.positions(variant)
        items = table.items(variant, positions)
        unscored = sum(item is None for item in items)
        rows.append(
            CandidateRecord(
                variant=str(variant),
                score=plain(scorer.aggregate(items)),
                stderr=plain(scorer.stderr(items, None if clusters is None else codes_at(clusters, positions))),
                documents=len(items) - unscored,
                unscored=unscored,
                eliminated_after=plan.eliminated.get(variant),
                items=tuple(plain(table.row(variant, positions))),
            )
        )
    # An eliminated candidate has met fewer documents; its score cannot stand beside the others'.
    in_the_end = [variant for variant in asked if variant not in plan.eliminated]
    items_of = {variant: table.row(variant, plan.positions(variant)) for variant in in_the_end}
    choice = _choice(table, scorer, settings, plan, in_the_end, clusters)
    chosen, full = in_the_end[choice.chosen], settings.candidates.full
    gain = None
    if full in items_of and chosen != full:
        gain = difference(scorer, items_of[chosen], items_of[full], clusters)
    race = plan.to_record()
    return SweepRecord(
        candidate_set=settings.candidates.name,
        ordered=settings.candidates.ordered,
        strategy=settings.strategy,
        select=settings.select,
        seed=settings.seed,
        engine=way.engine if way else "journal",
        check=way.check if way else None,
        aggregation=scorer.aggregation.name,
        candidates=tuple(rows),
        not_asked=tuple(str(variant) for variant in table.candidates if variant not in asked),
        chosen=str(chosen),
        best=str(in_the_end[choice.best]),
        gain_over_full=gain,
        racing=None if race is None else msgspec.convert(race, RacingRecord),
        warnings=_warnings(rows, scorer, guaranteed=race is None or bool(race["guaranteed"])),
    )


def _choice(
    table: Table,
    scorer: Scorer,
    settings: SweepSettings,
    plan: Exhaustive | Race | Refine,
    among: Sequence[Variant],
    clusters: Codes | None,
) -> Choice:
    """The choice among candidates that met the same documents."""
    return choose(
        settings.select,
        [table.row(variant, plan.positions(variant)) for variant in among],
        scorer.aggregation,
        scorer.metric.sign,
        ordered=settings.candidates.ordered,
        places=places_of(among),
        clusters=clusters,
        worst=scorer.metric.worst,
    )


def difference(scorer: Scorer, first: Sequence[Any], second: Sequence[Any], clusters: Codes | None) -> DifferenceRecord:
    """The paired difference of two candidates' items over the same documents, for the record."""
    found = paired_difference(
        scorer.aggregation,
        first,
        second,
        sign=scorer.metric.sign,
        resamples=scorer.resamples,
        clusters=clusters,
    )
    return DifferenceRecord(difference=plain(found.value), stderr=plain(found.stderr), documents=found.documents)


def choose_anew(sweep: SweepRecord, chosen: str, scorer: Scorer, clusters: Codes | None) -> SweepRecord:
    """`sweep`, in which nothing was eliminated, with another candidate chosen, and its gain over the full adapter.

    The full adapter must be among the candidates; of several adapters the first that stands there counts.
    """
    full = sweep.candidates[0]
    found = sweep.candidate(chosen)
    assert found is not None
    gain = None if found is full else difference(scorer, found.items, full.items, clusters)
    return replace(sweep, chosen=chosen, gain_over_full=gain)


def _warnings(rows: Sequence[CandidateRecord], scorer: Scorer, *, guaranteed: bool) -> tuple[str, ...]:
    found = []
    unscored = sum(row.unscored for row in rows)
    if unscored:
        answers = unscored + sum(row.documents for row in rows)
        found.append(
            f"{unscored} of {answers} answers gave no value of {scorer.metric}; each candidate's score leaves its own "
            "out. Differences are taken on common documents. metadata: {missing: 0} of the task counts them as 0."
        )
    if not guaranteed:
        found.append(
            f"the range of {scorer.metric} is not known or a score lies outside, so racing has no guaranteed error "
            "rate: it guessed the range from the scores seen. Declare metadata: {range: [LOW, HIGH]} in the task."
        )
    return tuple(found)
