"""`lora-drop judge people`: few human scores and many of a panel, joined."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_lora_drop.commands.options import add_json, add_output, command, positive, write_json
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.text import number

if TYPE_CHECKING:
    from lm_eval_lora_drop.judge.people import Floats


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="one run with GPT-Scores and samples, or A and B for B - A"
    )
    parser.add_argument(
        "--humans",
        type=Path,
        required=True,
        nargs="+",
        metavar="CSV",
        help="one CSV per run: doc_id and scores",
    )
    parser.add_argument("--scale", type=float, nargs=2, metavar=("LOW", "HIGH"), help="of the scores (default: 0 100)")
    parser.add_argument("--task", help="task, if a run has several judged ones")
    parser.add_argument("--next", type=positive, default=10, help="number of documents to suggest for rating")
    add_output(parser, "--plot", help="plot each judge against people: .png, .svg or .pdf")
    add_json(parser)


@command("people", "prediction-powered intervals from human scores and a panel's", _add_options)
def people(args: argparse.Namespace) -> int:
    """Prints intervals, the agreement of each judge with people, and the documents to rate next.

    lora-drop judge people out/full --humans anna.csv
    lora-drop judge people out/full out/k24 --humans full.csv k24.csv
    lora-drop judge people out/full --humans anna.csv --plot people.png --json people.json
    """
    import numpy as np

    from lm_eval_lora_drop.judge.people import correlation, filled, next_documents, powered_mean, read_people
    from lm_eval_lora_drop.record.plain import plain
    from lm_eval_lora_drop.show.figures.people import people_figure
    from lm_eval_lora_drop.show.figures.style import check_formats, save_figure

    if len(args.runs) != len(args.humans) or len(args.runs) > 2:
        raise ArgumentError("give one or two runs, and for each of them a file of --humans in the same order.")
    formats = check_formats([args.plot.suffix[1:]]) if args.plot else []
    judges, scores = _scores(args.runs[0], args.task)
    said = [read_people(path, args.scale) for path in args.humans]
    _check_documents(args.humans[0], said[0], scores, args.runs[0])
    if len(args.runs) == 2:
        others, second = _scores(args.runs[1], args.task)
        if others != judges:
            raise ArgumentError(f"the runs have other judges: {', '.join(judges)} and {', '.join(others)}.")
        _check_documents(args.humans[1], said[1], second, args.runs[1])
        scores = {document: second[document] - row for document, row in scores.items() if document in second}
    columns = np.array(list(scores.values())).reshape(-1, len(judges)).T
    panel = dict(zip(scores, filled(columns), strict=True))
    result: dict[str, Any] = {"criteria": {}}
    points = {}
    for criterion, given in said[0].items():
        human = {document: value for document, value in given.items() if document in panel}
        if len(said) == 2:
            theirs = said[1].get(criterion, {})
            human = {document: theirs[document] - value for document, value in human.items() if document in theirs}
        y, rows = np.array(list(human.values())), np.array([scores[document] for document in human])
        rest = np.array([value for document, value in panel.items() if document not in human])
        found = powered_mean(y, np.array([panel[document] for document in human]), rest)
        print(f"{criterion}: {_interval(asdict(found))}")
        print(f"  {found.by_people} documents scored by people, {found.by_judges_alone} by judges alone")
        result["criteria"][criterion] = {**asdict(found), "judges": {}}
        for name, judged in zip(judges, rows.T, strict=True):
            agreement = correlation(y, judged)
            bias = float(np.mean((judged - y)[~np.isnan(judged)])) if not np.isnan(judged).all() else np.nan
            shown = f"rank correlation with people {number(agreement, 2)}, mean difference {number(bias, 1, sign=True)}"
            print(f"  {name}: {shown}")
            numbers = {"rank_correlation": plain(agreement), "bias": plain(bias)}
            result["criteria"][criterion]["judges"][name] = numbers
            points[criterion, name] = (y, judged)
    done = {document for given in said[0].values() for document in given}
    result["next"] = next_documents(columns, list(panel), done, args.next)
    listed = ", ".join(map(str, result["next"]))
    print(f"judges differ most on doc_id {listed}: worth reading. For intervals draw documents at random.")
    write_json(args.json, result)
    if args.plot:
        print(*save_figure(people_figure(points, difference=len(said) == 2), args.plot.with_suffix(""), formats))
    return 0


def print_joined(row: dict[str, Any] | None) -> None:
    """A criterion's preferences of people and judges, from `judge.people.preferences.joined`."""
    if row is None:
        print("    with the judges: people voted on fewer than five pairs")
        return
    print(f"    with the judges: {_interval(row)}")
    print(f"    {row['by_people']} pairs by people and judges, {row['by_judges_alone']} by judges alone")
    for name, judge in row["judges"].items():
        alpha = number(judge["agreement"], 2)
        print(f"    {name}: same choice as people on {judge['same']} of {judge['pairs']} pairs, agreement {alpha}")


def _interval(row: dict[str, Any]) -> str:
    ends = [" to ".join(number(end, 1) for end in row[name]) for name in ("interval", "people_alone")]
    if ends[0] == "- to -":
        return f"{number(row['value'], 1)} %, no interval: people gave every document the same score"
    return f"{number(row['value'], 1)} %, 95 % CI {ends[0]} (people alone: {ends[1]})"


def _check_documents(path: Path, said: dict[str, dict[int, float]], known: dict[int, Floats], run: str) -> None:
    """Raises ArgumentError where people scored a document that the run does not have."""
    other = sorted({document for given in said.values() for document in given} - known.keys())
    if other:
        raise ArgumentError(
            f"{path}: {run} has no document {', '.join(map(str, other[:5]))}, so these scores belong to another run. "
            "Give each run the file of its own outputs, with the doc_id of its samples."
        )


def _scores(path: str, task: str | None) -> tuple[list[str], dict[int, Floats]]:
    """The judges of a run, and by document their scores in percent, NaN where a judge gave none."""
    from lm_eval_lora_drop.judge.task import METRIC
    from lm_eval_lora_drop.show.report.judged import judgement
    from lm_eval_lora_drop.show.report.systems import open_system

    tasks = open_system(path)[0].tasks
    having = [name for name, run in tasks.items() if any(metric == METRIC for metric, _ in run.scores)]
    named = [task] if task else having
    if len(named) != 1 or named[0] not in having:
        raise ArgumentError(
            f"{path}: --task must name a task with GPT-Scores; there are {', '.join(having) or 'none'}."
        )
    run = tasks[named[0]]
    filter_name = next(name for metric, name in run.scores if metric == METRIC)
    if filter_name not in run.documents:
        raise ArgumentError(
            f"{path}: no logged samples, by which people's scores are joined. Use lm_eval --log_samples."
        )
    found = judgement(run, METRIC, filter_name)
    return found.judges, dict(zip(run.documents[filter_name].doc_ids, found.scores.T, strict=True))
