"""`lora-drop plan`: which difference a number of documents can show, and how many a difference needs."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_lora_drop.commands.options import add_json, command, positive, warn, write_json
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.show.tables import table
from lm_eval_lora_drop.text import duration_text, percent, significant

if TYPE_CHECKING:
    from lm_eval_lora_drop.record.schema import TaskRecord
    from lm_eval_lora_drop.statistics.power import PairedVariation

_SIZES = (50, 100, 200, 500, 1000, 2000)
_DIFFERENCES = (0.01, 0.02, 0.05, 0.1)
"""Of the metric's scale, which is 1, or 100 where a document's value can be that large."""


@dataclass(frozen=True)
class Pilot:
    """What is known of two candidates: in words, how much they differ by document, and the speed of a sweep.

    `candidates` and `pairs_per_second` (a pair is one candidate on one document) are None where nothing was swept.
    """

    name: str
    known: PairedVariation
    scale: float = 1.0
    candidates: int | None = None
    pairs_per_second: float | None = None


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="*", type=Path, metavar="RUN", help="runs with a sweep")
    parser.add_argument("--task", action="append", default=[], help="this task only (may be repeated)")
    parser.add_argument("--pilot", nargs=2, metavar=("A", "B"), help="two runs of the same tasks, as for compare")
    parser.add_argument(
        "--discordance", type=float, metavar="SHARE", help="guess for a 0/1 metric: share of documents that differ"
    )
    parser.add_argument(
        "--spread", type=float, metavar="SD", help="guess: standard deviation of per-document differences"
    )
    parser.add_argument(
        "--documents", type=positive, nargs="+", metavar="N", help=f"default {' '.join(map(str, _SIZES))}"
    )
    parser.add_argument(
        "--difference", type=float, nargs="+", metavar="D", help="difference to detect, in the metric's units"
    )
    parser.add_argument("--power", type=float, default=0.8, help="statistical power (default 0.8)")
    add_json(parser)


@command("plan", "how many documents do I need? from a finished sweep, a pilot or a guess", _add_options)
def _plan(args: argparse.Namespace) -> int:
    """Prints the minimum detectable difference of two candidates for a number of documents, and the documents needed
    for a difference, from how much the candidates differ per document.

    lora-drop plan out --difference 0.02
    lora-drop plan --pilot out/full out/k24
    lora-drop plan --discordance 0.1 --documents 100 500
    """
    if not 0 < args.power < 1:
        raise ArgumentError(f"--power is a share between 0 and 1, got {args.power:g}.")
    if any(not 0 < value < float("inf") for value in args.difference or ()):
        raise ArgumentError(f"--difference must be above 0, got {' '.join(map(str, args.difference))}.")
    pilots = [*_guesses(args), *_sweeps(args), *_pairs(args)]
    if not pilots:
        raise ArgumentError(
            "nothing to plan from. Give runs with a sweep (RUN ...), two runs (--pilot A B) or a guess (--discordance "
            "0.1 for a 0/1 metric, --spread 12 for any other)."
        )
    plans = [_table(pilot, args) for pilot in pilots]
    write_json(args.json, {"power": args.power, "plans": plans})
    print("\n\n".join(_render(plan, args.power) for plan in plans))
    return 0


add_parser = _plan.add_parser


def _guesses(args: argparse.Namespace) -> list[Pilot]:
    from lm_eval_lora_drop.statistics.power import PairedVariation

    found = []
    if args.discordance is not None:
        found.append(Pilot("0/1 metric, guessed", PairedVariation.of_share(args.discordance)))
    if args.spread is not None:
        scale = 100.0 if args.spread > 1 else 1.0
        found.append(
            Pilot("metric with one number per document, guessed", PairedVariation.of_spread(args.spread), scale)
        )
    return found


def _sweeps(args: argparse.Namespace) -> list[Pilot]:
    if not args.paths:
        return []
    from lm_eval_lora_drop.show.verdict.stability import sweeps_in

    found, issues = sweeps_in(args.paths, args.task)
    warn(issues)
    return [pilot for _, task, record in found for pilot in _sweep(task, record)]


def _sweep(task: str, record: TaskRecord) -> list[Pilot]:
    import numpy as np

    from lm_eval_lora_drop.show.verdict.planning import variations
    from lm_eval_lora_drop.sweep.recorded import RecordedSweep

    assert record.sweep is not None
    recorded = RecordedSweep.from_record(record)
    try:
        found = variations(recorded)
    except ArgumentError as error:
        raise ArgumentError(f"task {task}: {error}") from error
    time = record.sweep.seconds_per_pair
    return [
        Pilot(
            f"{task}, {record.metric}: {variant.label} against {reference.label}",
            known,
            scale=100.0 if float(np.nanmax(np.abs(recorded.values))) > 1.5 else 1.0,
            candidates=len(record.sweep.candidates),
            pairs_per_second=1 / time if time else None,
        )
        for variant, reference, known in found
    ]


def _pairs(args: argparse.Namespace) -> list[Pilot]:
    if args.pilot is None:
        return []
    import numpy as np

    from lm_eval_lora_drop.show.report.corrections import first_metric
    from lm_eval_lora_drop.show.report.systems import common_tasks, differences, open_system
    from lm_eval_lora_drop.statistics.power import variation
    from lm_eval_lora_drop.statistics.significance import numbers

    opened = [open_system(argument) for argument in args.pilot]
    warn(issue for _, issues in opened for issue in issues)
    systems = [system for system, _ in opened]
    tasks, _ = common_tasks(systems)
    found = []
    for task in tasks:
        if args.task and task not in args.task:
            continue
        one, two = (system.tasks[task] for system in systems)
        metric, filter_name = first_metric(one) or ("", "")
        reasons = differences(one, two, filter_name)
        left, right = (
            numbers(run.documents[filter_name].metrics.get(metric, [None])) if filter_name in run.documents else None
            for run in (one, two)
        )
        if reasons or left is None or right is None:
            why = "; ".join(reasons) or f"{metric or 'its metric'} has no number for each logged document"
            raise ArgumentError(f"task {task}: the pilot's runs cannot be compared: {why}.")
        scale = 100.0 if float(np.abs(np.concatenate([left, right])).max()) > 1.5 else 1.0
        name = f"{task}, {metric}: {systems[1].label} against {systems[0].label}"
        found.append(Pilot(name, variation(left, right), scale))
    return found


def _table(pilot: Pilot, args: argparse.Namespace) -> dict[str, Any]:
    from lm_eval_lora_drop.statistics.power import assumed, detectable_difference, documents_needed, duration

    known = pilot.known
    sizes = args.documents or sorted({*_SIZES, *([known.documents] if known.documents else [])})
    differences = args.difference or [share * (known.unit or pilot.scale) for share in _DIFFERENCES]

    def seconds(documents: int | None) -> float | None:
        if documents is None or not pilot.candidates or not pilot.pairs_per_second:
            return None
        return duration(documents, pilot.candidates, pilot.pairs_per_second)

    needed = [(difference, documents_needed(difference, known, power=args.power)) for difference in differences]
    return {
        "pilot": pilot.name,
        "documents": known.documents,
        "changed": known.changed,
        "discordance": known.discordance,
        "spread": known.spread,
        "assumed": assumed(known),
        "candidates": pilot.candidates,
        "pairs_per_second": pilot.pairs_per_second,
        "shown": [
            {
                "documents": size,
                "difference": detectable_difference(size, known, power=args.power),
                "seconds": seconds(size),
            }
            for size in sizes
        ],
        "needed": [{"difference": d, "documents": size, "seconds": seconds(size)} for d, size in needed],
    }


def _render(plan: dict[str, Any], power: float) -> str:
    timed = plan["candidates"] and plan["pairs_per_second"]
    heads = ["documents", "difference"] + ([f"sweep of {plan['candidates']} candidates"] if timed else [])

    def line(row: dict[str, Any], difference: str) -> list[str]:
        cells = ["-" if row["documents"] is None else f"{row['documents']:,}", difference]
        return [*cells, duration_text(row["seconds"])] if timed else cells

    def detected(difference: float | None) -> str:
        return "none" if difference is None else significant(difference, 2)

    seen = "" if plan["documents"] is None else f", on {plan['documents']} documents"
    tables = [
        (
            f"Minimum detectable difference ({percent(power)} power, alpha = .05):",
            [line(row, detected(row["difference"])) for row in plan["shown"]],
        ),
        ("Documents needed:", [line(row, f"{row['difference']:g}") for row in plan["needed"]]),
    ]
    parts = [f"{plan['pilot']}{seen}: {plan['assumed']}"]
    for title, rows in tables:
        parts.append(f"{title}\n\n{table(heads, rows, left=())}")
    return "\n\n".join(parts)
