"""`lora-drop judge ...`: score outputs later, compare two systems, write sheets for people and read them back."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_lora_drop.commands.judge_audit import audit
from lm_eval_lora_drop.commands.judge_panel import (
    KEPT,
    add_panel,
    bill_line,
    estimate_text,
    panel_given,
    rubric_from,
    with_cache,
)
from lm_eval_lora_drop.commands.judge_people import people, print_joined
from lm_eval_lora_drop.commands.options import add_json, command, natural, positive, write_json
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.text import decimals_for, number, percent, with_error

if TYPE_CHECKING:
    from lm_eval_lora_drop.judge.cache import Cache
    from lm_eval_lora_drop.judge.pairwise import Pair
    from lm_eval_lora_drop.judge.questions import Rubric
    from lm_eval_lora_drop.judge.score import PanelScores


def _runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", metavar="[LABEL=]A", help="a results file or folder with logged samples")
    parser.add_argument("second", metavar="[LABEL=]B")
    parser.add_argument("--task", help="task, if the runs share several")


def _add_rescore_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "results", type=Path, help="a results file or its folder, or a .jsonl that a run saved for its judges"
    )
    add_panel(parser)
    parser.add_argument(
        "--force",
        action="store_true",
        help="also replace a score with more verdicts; the old one is kept in the file",
    )
    parser.add_argument("--offline", action="store_true", help="use cached answers only; makes no call")


@command("rescore", "fill GPT-Scores into a results file, or score saved outputs", _add_rescore_options, KEPT)
@with_cache
def _rescore(args: argparse.Namespace, cache: Cache) -> int:
    """Scores logged outputs by a panel of judges and writes GPT-Scores into the results file.

    lora-drop judge rescore out --panel panel.yaml --dry-run
    lora-drop judge rescore out --panel panel.yaml --max-spend 5
    lora-drop judge rescore out --panel current --rubric rubric.yaml
    """
    from dataclasses import replace

    from lm_eval_lora_drop.judge.rescore import judged_tasks, write_scores
    from lm_eval_lora_drop.judge.score import questions, rubric_of, score
    from lm_eval_lora_drop.judge.task import read_items

    if not args.results.exists():
        raise ArgumentError(f"{args.results} does not exist. Give a results file of lm_eval, or its folder.")
    panel, rubric = panel_given(args), rubric_from(args)
    saved = args.results.suffix == ".jsonl"
    judged = [] if saved else judged_tasks(args.results, rubric)
    lists = [read_items(args.results)] if saved else [task.items for task in judged]
    if args.dry_run:
        every = {
            j.name: [q for items in lists for q in questions(j, panel, items, rubric_of(panel, items, rubric))]
            for j in panel.judges
        }
        print(estimate_text(panel, every, cache))
        return 0
    complete, failures = True, list[ArgumentError]()
    for index, items in enumerate(lists):
        # One task after the other, each written when it is judged: what comes later costs it nothing.
        found = score(panel, items, cache, offline=args.offline, rubric=rubric)
        if panel.max_spend is not None:
            # The cap is the command's, so the next task has what this one has left.
            panel = replace(panel, max_spend=max(0.0, panel.max_spend - found.answers.bill.dollars_in_all))
        name = args.results.name if saved else judged[index].run.name
        print(_summary(name, found))
        complete = complete and found.verdicts == len(items) * len(panel.judges)
        if saved:
            continue
        try:
            write_scores(judged[index], found, force=args.force)
            print(f"  written to {judged[index].run.run.path}")
        except ArgumentError as error:  # the other tasks' scores are not to be lost for it
            failures.append(error)
    if failures:
        raise failures[0]
    return 0 if complete else 1


def _add_pairwise_options(parser: argparse.ArgumentParser) -> None:
    _runs(parser)
    add_panel(parser)
    add_json(parser)


@command("pairwise", "which of two runs' outputs a panel prefers", _add_pairwise_options, KEPT)
@with_cache
def _pairwise(args: argparse.Namespace, cache: Cache) -> int:
    """Asks a panel which of two runs' outputs is better, each pair in both orders.

    lora-drop judge pairwise full=out/full K24=out/k24 --panel panel.yaml
    lora-drop judge pairwise out/full out/k24 --panel panel.yaml --dry-run
    lora-drop judge pairwise out/full out/k24 --task lora_drop_samsum --json preferences.json
    """
    from lm_eval_lora_drop.judge.pairwise import both_orders, compare

    panel = panel_given(args)
    rubric = rubric_from(args)
    labels, pairs = _pairs(args, rubric)
    if args.dry_run:
        print(
            estimate_text(
                panel, {judge.name: both_orders(panel, pairs, judge, rubric) for judge in panel.judges}, cache
            )
        )
        return 0
    comparison = compare(panel, pairs, cache, rubric)
    found = {"systems": list(labels), "pairs": len(pairs), **comparison.to_json()}
    write_json(args.json, found)
    print(f"{labels[0]} against {labels[1]}, {len(pairs)} pairs, each in both orders; win rate of {labels[0]}:")
    for name, row in {**found["judges"], "panel": found["panel"]}.items():
        bias = row["position_bias_rate"]
        print(f"  {name}: {_rate(row)}, position bias {'-' if bias is None else f'{bias:.0%}'}", end="")
        print(f", {row['without_verdict']} without verdict" if row["without_verdict"] else "")
    print(f"  {bill_line(comparison.answers.bill, panel)}")
    return 0


def _add_sheet_options(parser: argparse.ArgumentParser) -> None:
    _runs(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--number", type=positive, default=30, help="number of random pairs (default 30, as in the paper)"
    )
    parser.add_argument("--seed", type=natural, default=0)


@command("sheet", "write a blinded CSV and an HTML form for human raters", _add_sheet_options)
def _sheet(args: argparse.Namespace) -> int:
    """Writes pairs of outputs in random order, without the names of the runs, for people to rate.

    lora-drop judge sheet full=out/full K24=out/k24 -o sheet
    lora-drop judge sheet out/full out/k24 -o sheet --number 50
    lora-drop judge sheet out/full out/k24 -o sheet --task lora_drop_samsum --seed 1
    """
    from lm_eval_lora_drop.judge.people.sheets import write_sheets

    labels, pairs = _pairs(args)
    sheet, form, key = write_sheets(pairs, labels, args.output, args.number, args.seed)
    print(f"for the raters: {sheet} or {form}\nfor you alone:  {key}")
    return 0


def _add_collect_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", type=Path, help="key.json of `lora-drop judge sheet`")
    parser.add_argument("sheets", type=Path, nargs="+", help="one completed CSV per rater")
    parser.add_argument(
        "--judged", type=Path, metavar="FILE", help="join a panel's preferences, from judge pairwise --json FILE"
    )
    add_json(parser)


@command("collect", "win rate and agreement from filled sheets", _add_collect_options)
def _collect(args: argparse.Namespace) -> int:
    """Reads completed sheets: win rate with its interval, and the agreement of the raters.

    lora-drop judge collect sheet/key.json anna.csv bo.csv
    lora-drop judge collect sheet/key.json anna.csv --json people.json
    lora-drop judge collect sheet/key.json anna.csv --judged preferences.json
    """
    from lm_eval_lora_drop.judge.people.sheets import collect

    found = collect(args.key, args.sheets, args.judged)
    write_json(args.json, found)
    first, second = found["systems"]
    print(f"{first} against {second}, {found['pairs']} pairs, {found['raters']} raters; win rate of {first}:")
    for name, row in found["criteria"].items():
        alpha = "-" if row["agreement"] is None else f"{row['agreement']:.2f}"
        print(f"  {name}: {_rate(row)}, agreement {alpha}" + (f", {row['missing']} missing" if row["missing"] else ""))
        if args.judged:
            print_joined(row["with_judges"])
    if found["raters"] > 1:
        print(
            "The intervals treat votes as independent. Votes on one pair are not, so the intervals are too narrow. "
            "The sign test is of pairs, each decided by the majority of its raters."
        )
    return 0


def add_parser(subparsers: Any) -> None:
    """Add `judge` to `lora-drop`."""
    parser = subparsers.add_parser("judge", help="GPT-Score, pairwise preference, sheets for human raters")
    commands = parser.add_subparsers(dest="judge_command", required=True, metavar="COMMAND")
    for one in (_rescore, _pairwise, audit, _sheet, _collect, people):
        one.add_parser(commands)


def _pairs(args: argparse.Namespace, rubric: Rubric | None = None) -> tuple[tuple[str, str], list[Pair]]:
    from lm_eval_lora_drop.judge.pairwise import pair_up
    from lm_eval_lora_drop.show.report.systems import open_system

    one, two = open_system(args.first)[0], open_system(args.second)[0]
    shared = [
        name
        for name in one.tasks
        if name in two.tasks and (rubric or "judge" in (one.tasks[name].config.get("metadata") or {}))
    ]
    if args.task is None and not shared:
        raise ArgumentError("the runs share no task whose metadata says what a judge has to know. Name two that do.")
    if args.task is None and len(shared) > 1:
        raise ArgumentError(
            f"the runs share {len(shared)} tasks for judges ({', '.join(shared)}); name one with --task."
        )
    task = args.task or shared[0]
    if task not in one.tasks or task not in two.tasks:
        raise ArgumentError(f"--task must be in both runs; they share {', '.join(shared) or 'none'}. Got {task}.")
    labels = (one.label, two.label) if one.label != two.label else (args.first, args.second)
    return labels, pair_up(one.tasks[task], two.tasks[task], rubric)


def _rate(row: Mapping[str, Any]) -> str:
    counts = f"{row['wins']} wins, {row['losses']} losses, {row['ties']} ties"
    if row["win_rate"] is None:
        return counts
    test = "" if row["sign_test_p"] is None else f", sign test p = {row['sign_test_p']:.3g}"
    return f"{row['win_rate']:.1%} [{row['win_rate_low']:.1%}, {row['win_rate_high']:.1%}], {counts}{test}"


def _summary(name: str, scores: PanelScores) -> str:
    """A few lines for a terminal."""
    details: dict[str, Any] = scores.to_json()
    whole = details["complete_items"] == details["items"]
    on = (
        f"{details['items']} outputs"
        if whole
        else f"the {details['complete_items']} of {details['items']} outputs that all judges scored"
    )
    lines = [
        f"{name}: GPT-Score {with_error(scores.mean, scores.stderr)} % on {on}, coverage {percent(scores.coverage)}"
    ]
    for judge, found in details["judges"].items():
        shown = "no verdict" if found["mean"] is None else f"{number(found['mean'], decimals_for(scores.stderr))} %"
        lines.append(f"  {judge}: {shown}, {found['verdicts']} verdicts")
    if len(details["judges"]) > 1:
        lines.append(f"  agreement (Krippendorff's alpha): {number(scores.agreement, 2)}")
    lines.append(f"  {bill_line(scores.answers.bill, scores.panel)}")
    return "\n".join(lines + [f"  warning: {warning}" for warning in details["warnings"]])
