"""`lora-drop judge people`: few human scores and many of a panel, joined."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_lora_drop.commands.options import add_json, command, positive, write_json
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
        help="one CSV per run: doc_id and scores in percent",
    )
    parser.add_argument("--task", help="task, if a run has several judged ones")
    parser.add_argument("--next", type=positive, default=10, help="number of documents to suggest for rating")
    add_json(parser)


@command("people", "prediction-powered intervals from human scores and a panel's", _add_options)
def people(args: argparse.Namespace) -> int:
    """Intervals, the agreement of each judge with people, documents to read next."""
    import numpy as np

    from lm_eval_lora_drop.judge.people import correlation, next_documents, powered_mean, read_people

    if len(args.runs) != len(args.humans) or len(args.runs) > 2:
        raise ArgumentError("give one or two runs, and for each of them a file of --humans in the same order.")
    judges, panel = _scores(args.runs[0], args.task)
    said = [read_people(path) for path in args.humans]
    if len(args.runs) == 2:
        others, second = _scores(args.runs[1], args.task)
        if others != judges:
            raise ArgumentError(f"the runs have other judges: {', '.join(judges)} and {', '.join(others)}.")
        panel = {document: second[document] - row for document, row in panel.items() if document in second}
    result: dict[str, Any] = {"criteria": {}}
    for criterion, scores in said[0].items():
        human = {document: value for document, value in scores.items() if document in panel}
        if len(said) == 2:
            theirs = said[1].get(criterion, {})
            human = {document: theirs[document] - value for document, value in human.items() if document in theirs}
        y, f = (
            np.array(list(human.values())),
            np.array([panel[document] for document in human]).reshape(-1, len(judges)),
        )
        rest = np.array([row.mean() for document, row in panel.items() if document not in human])
        found = powered_mean(y, f.mean(axis=1), rest)
        ends = [" to ".join(number(end, 1) for end in pair) for pair in (found.interval, found.people_alone)]
        print(f"{criterion}: {number(found.value, 1)} %, 95 % CI {ends[0]} (people alone: {ends[1]})")
        print(f"  {found.by_people} documents scored by people and judges, {found.by_judges_alone} by judges alone")
        result["criteria"][criterion] = {**asdict(found), "judges": {}}
        for place, name in enumerate(judges):
            agreement, bias = correlation(y, f[:, place]), float((f[:, place] - y).mean())
            shown = f"rank correlation with people {number(agreement, 2)}, mean difference {number(bias, 1, sign=True)}"
            print(f"  {name}: {shown}")
            agreement_ = None if math.isnan(agreement) else agreement
            result["criteria"][criterion]["judges"][name] = {"rank_correlation": agreement_, "bias": bias}
    done = {document for scores in said[0].values() for document in scores}
    result["next"] = next_documents(np.array(list(panel.values())).T, list(panel), done, args.next)
    listed = ", ".join(map(str, result["next"]))
    print(f"judges differ most on doc_id {listed}: worth reading. For intervals draw documents at random.")
    write_json(args.json, result)
    return 0


def _scores(path: str, task: str | None) -> tuple[list[str], dict[int, Floats]]:
    """The judges of a run, and by document their scores in percent, where all of them gave one."""
    import numpy as np

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
    by_document = zip(run.documents[filter_name].doc_ids, found.scores.T, strict=True)
    return found.judges, {document: row for document, row in by_document if not np.isnan(row).any()}
