"""Runs a sweep: plan -> runner -> scores -> journal -> plan ... -> selection."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from lm_eval_lora_drop.listeners.progress import Progress
from lm_eval_lora_drop.record.journal import Journal
from lm_eval_lora_drop.record.sweep import Row, SweepResult
from lm_eval_lora_drop.statistics.paired import paired_difference
from lm_eval_lora_drop.sweep import prior
from lm_eval_lora_drop.sweep.racing import Race, RacingSettings
from lm_eval_lora_drop.sweep.score import Scorer
from lm_eval_lora_drop.sweep.select import best_boundary, choose
from lm_eval_lora_drop.sweep.table import Table
from lm_eval_lora_drop.work import Answer, Document, Runner, Work

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class SweepSettings:
    """What is compared, and how the choice is made.

    `boundaries` are the candidates, each 0..L; `strategy` is exhaustive or racing; `select` is best or one_se; `seed`
    is the order in which racing takes the documents, and `racing` how careful it is.
    """

    boundaries: tuple[int, ...]
    strategy: str = "exhaustive"
    select: str = "best"
    seed: int = 0
    racing: RacingSettings = field(default_factory=RacingSettings)


class Peers(Protocol):
    """The processes that sweep together."""

    @property
    def rank(self) -> int:
        """0..world_size-1."""

    @property
    def world_size(self) -> int:
        """How many there are."""

    def all_gather_object(self, obj: Any) -> list[Any]:
        """The objects of all ranks, in the order of their ranks, on every rank."""


def run_sweep(
    documents: Sequence[Document],
    runner: Runner,
    scorer: Scorer,
    settings: SweepSettings,
    journal: Journal,
    *,
    num_layers: int,
    peers: Peers,
    progress: bool = True,
    reference: Mapping[int, Sequence[float]] | None = None,
) -> SweepResult:
    """Score every candidate boundary on `documents` and choose one.

    `reference`, for racing, is what `prior.hopeless` takes: with it, hopeless boundaries meet no document.

    What the journal holds is not asked again. With several processes each answers its share of the documents, and all
    of them end with the same result; an error in one is raised in all.

    Raises:
        ArgumentError: the journal belongs to other settings or cannot be written; no document has a score.
    """
    table = Table(sorted(settings.boundaries, reverse=True), len(documents))
    _recall(documents, scorer, journal, table, peers)
    plan: Exhaustive | Race = Exhaustive(table)
    if settings.strategy == "racing":
        plan = Race(
            table,
            scorer.aggregation,
            sign=scorer.metric.sign,
            num_layers=num_layers,
            seed=settings.seed,
            select=settings.select,
            settings=settings.racing,
            # The first rank's view for all: the last digits of a likelihood may differ between machines.
            hopeless=in_step(peers, lambda: _hopeless(reference, table, num_layers))[0],
        )
    with Progress(table, scorer, shown=progress and peers.rank == 0, shares=peers.world_size) as bar:
        for wanted in plan.rounds():
            bar.start(wanted)
            work = _share(documents, wanted, table, peers)

            def answer(work: Sequence[Work] = work) -> list[tuple[int, int, Any]]:
                return list(_answer(documents, work, runner, scorer, journal, bar))

            for pairs in in_step(peers, answer):
                table.set(pairs)
    return _result(table, scorer, settings, num_layers, plan)


def _hopeless(reference: Mapping[int, Sequence[float]] | None, table: Table, num_layers: int) -> list[int]:
    hopeless = prior.hopeless(table.boundaries, reference, num_layers) if reference else []
    # Candidates chosen by hand may all lie below the margin: then the prior has nothing to say about which to keep.
    return hopeless if len(hopeless) < len(table.boundaries) else []


class Exhaustive:
    """Every boundary meets every document, in one round."""

    retired: Mapping[int, int] = {}

    def __init__(self, table: Table) -> None:
        self._table = table

    def rounds(self) -> Iterator[dict[int, Sequence[int]]]:
        """Rounds of boundary -> positions of documents."""
        yield {boundary: range(self._table.documents) for boundary in self._table.boundaries}

    def positions(self, _: int) -> Sequence[int]:
        """The documents that a boundary met: all."""
        return range(self._table.documents)

    def to_json(self) -> None:
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


def _recall(documents: Sequence[Document], scorer: Scorer, journal: Journal, table: Table, peers: Peers) -> None:
    """Fill the table from the journal; machines that share no folder tell each other what theirs holds."""
    known: dict[tuple[int, str], tuple[Any, ...]] = {}
    for found in in_step(peers, journal.read):
        known.update(found)
    pairs = [
        (boundary, position, document, known[boundary, document.key])
        for position, document in enumerate(documents)
        for boundary in table.boundaries
        if (boundary, document.key) in known
    ]
    # A response count that does not fit is no answer to these requests.
    pairs = [pair for pair in pairs if len(pair[3]) == len(pair[2].requests)]
    if not pairs:
        return
    log.info("%d of %d answers come from the journal", len(pairs), len(documents) * len(table.boundaries))
    for items in in_step(
        peers,
        lambda: [
            (boundary, position, scorer.item(Answer(boundary, document, responses)))
            for boundary, position, document, responses in pairs[peers.rank :: peers.world_size]
        ],
    ):
        table.set(items)


def _share(
    documents: Sequence[Document], wanted: Mapping[int, Sequence[int]], table: Table, peers: Peers
) -> list[Work]:
    """This rank's part of a round: every so-many-th of the documents that still lack an answer."""
    lacking: dict[int, list[int]] = {}
    for boundary, positions in wanted.items():
        for position in positions:
            if not table.answered(boundary, position):
                lacking.setdefault(position, []).append(boundary)
    mine = sorted(lacking)[peers.rank :: peers.world_size]
    return [Work(documents[position], tuple(sorted(lacking[position], reverse=True))) for position in mine]


def _answer(
    documents: Sequence[Document],
    work: Sequence[Work],
    runner: Runner,
    scorer: Scorer,
    journal: Journal,
    bar: Progress,
) -> Iterator[tuple[int, int, Any]]:
    if not work:
        return
    position_of = {document.doc_id: position for position, document in enumerate(documents)}
    for answers in runner(work):
        journal.append(answers)
        pairs = [(answer.boundary, position_of[answer.document.doc_id], scorer.item(answer)) for answer in answers]
        bar.update(pairs)
        yield from pairs


def _result(
    table: Table, scorer: Scorer, settings: SweepSettings, num_layers: int, plan: Exhaustive | Race
) -> SweepResult:
    rows = []
    for boundary in table.boundaries:
        items = table.items(boundary, plan.positions(boundary))
        unscored = sum(item is None for item in items)
        score, stderr = scorer.aggregate(items), scorer.stderr(items)
        rows.append(Row(boundary, score, stderr, len(items) - unscored, unscored, plan.retired.get(boundary)))
    # A retired boundary has met fewer documents; its score cannot stand beside the others'.
    in_the_end = {row.boundary: row for row in rows if row.retired_after is None}
    scores = {boundary: row.score for boundary, row in in_the_end.items()}
    best = best_boundary(scores, scorer.metric)
    chosen = choose(settings.select, scores, scorer.metric, in_the_end[best].stderr)
    gain = None
    if num_layers in in_the_end and chosen != num_layers:
        gain = paired_difference(
            scorer.aggregation,
            table.row(chosen, plan.positions(chosen)),
            table.row(num_layers, plan.positions(num_layers)),
            sign=scorer.metric.sign,
            resamples=scorer.resamples,
        )
    return SweepResult(
        boundary=chosen,
        best=best,
        rows=tuple(rows),
        items={boundary: table.row(boundary, plan.positions(boundary)) for boundary in table.boundaries},
        metric=scorer.metric,
        aggregation=scorer.aggregation.name,
        num_layers=num_layers,
        strategy=settings.strategy,
        select=settings.select,
        seed=settings.seed,
        gain=gain,
        warnings=_warnings(rows, scorer),
        racing=plan.to_json(),
    )


def _warnings(rows: Sequence[Row], scorer: Scorer) -> tuple[str, ...]:
    unscored = sum(row.unscored for row in rows)
    if not unscored:
        return ()
    answers = unscored + sum(row.documents for row in rows)
    return (
        f"{unscored} of {answers} answers gave no value of {scorer.metric}; each boundary's score leaves its own out.",
    )
