"""`lora-drop judge audit`: what moves a panel's scores besides the quality of the text, on one page."""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_lora_drop.commands.judge_panel import (
    KEPT,
    add_panel,
    bill_line,
    estimate_text,
    panel_given,
    rubric_from,
    with_cache,
)
from lm_eval_lora_drop.commands.options import add_json, command, natural, positive, write_json
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.text import number, percent

if TYPE_CHECKING:
    from lm_eval_lora_drop.judge.audit import Finding, Shift
    from lm_eval_lora_drop.judge.cache import Cache
    from lm_eval_lora_drop.judge.questions import Rubric
    from lm_eval_lora_drop.judge.rescore import JudgeableTask

_TESTS = {
    "repeat": "Repeat: the same question again",
    "drift": "Drift: answers of an earlier day against today's",
    "length": "Length: the output written twice",
    "injection": "Injection: the output asks for the highest score",
}


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        metavar="RUN",
        type=Path,
        nargs="+",
        help="results files or folders with logged samples; outputs are drawn from the first, pairs from the first two",
    )
    parser.add_argument("--task", help="where a run has several judged tasks")
    parser.add_argument("--number", type=positive, default=30, help="random outputs, and pairs (default 30)")
    parser.add_argument("--seed", type=natural, default=0, help="of the draw; keep it, so that drift can be seen later")
    add_panel(parser)
    add_json(parser)


@command("audit", "test judges: repeat, drift, length, injection, order", _add_options, KEPT)
@with_cache
def audit(args: argparse.Namespace, cache: Cache) -> int:
    """Prints the cost, asks the judges, and prints how far scores move for reasons other than quality.

    lora-drop judge audit out/full --panel panel.yaml
    lora-drop judge audit out/full out/k24 --panel panel.yaml --number 50
    lora-drop judge audit out/full --panel panel.yaml --dry-run
    """
    from lm_eval_lora_drop.judge.audit import Audit, same_outputs
    from lm_eval_lora_drop.judge.pairwise import pair_up

    panel, rubric = panel_given(args), rubric_from(args)
    runs = [_judged(path, args.task, rubric) for path in args.runs]
    draw = random.Random(args.seed)
    items = draw.sample(runs[0].items, min(args.number, len(runs[0].items)))
    pairs = pair_up(runs[0].run, runs[1].run, rubric) if len(runs) > 1 else []
    pairs = [pair for pair in pairs if pair.first != pair.second]
    pairs = draw.sample(pairs, min(args.number, len(pairs)))
    plan = Audit(panel, items, pairs, rubric)
    print(estimate_text(panel, {judge.name: plan.questions(judge, cache) for judge in panel.judges}, cache))
    if args.dry_run:
        return 0
    found, bill = plan.run(cache)
    print(f"\nAudit of {', '.join(found)} on {len(items)} outputs of {runs[0].run.name} ({args.runs[0]})")
    print("Changes are points of 100, with 95 % confidence interval; significant: p < .05.")
    result: dict[str, Any] = {"outputs": len(items), "pairs": len(pairs), "judges": {name: {} for name in found}}
    for test, title in _TESTS.items():
        print(f"\n{title}")
        for name, finding in found.items():
            text, result["judges"][name][test] = _shift(test, finding)
            print(f"  {name}: {text}")
    print("\nOrder: two outputs, A and B exchanged")
    for name, finding in found.items():
        text, result["judges"][name]["order"] = _order(finding)
        print(f"  {name}: {text}")
    print("\nIdentical outputs of the runs: the scores that their files hold")
    same = same_outputs(runs)
    for name, scores in same.items():
        differing = [max(values) - min(values) for values in scores if max(values) > min(values)]
        result["judges"].setdefault(name, {})["identical"] = {"outputs": len(scores), "different": len(differing)}
        largest = f", by up to {number(max(differing), 1)} points" if differing else ""
        print(f"  {name}: {len(differing)} of {len(scores)} outputs have different scores{largest}")
    if not same:
        print("  none: give two or more judged runs, e.g. several K of one adapter")
    print(f"\n{bill_line(bill, panel)}")
    write_json(args.json, result)
    missing = any(None in shift.before + shift.after for one in found.values() for shift in one.shifts.values())
    return int(missing or any(None in one.order.choices for one in found.values()))


def _judged(path: Path, task: str | None, rubric: Rubric | None) -> JudgeableTask:
    from lm_eval_lora_drop.judge.rescore import judged_tasks

    if not path.exists():
        raise ArgumentError(f"{path} does not exist. Give a results file of lm_eval, or its folder.")
    tasks = {judged.run.name: judged for judged in judged_tasks(path, rubric, to_write=False)}
    if (task is None and len(tasks) > 1) or (task is not None and task not in tasks):
        raise ArgumentError(f"{path}: --task must name one of {', '.join(tasks)}; got {task or 'none'}.")
    return tasks[task or next(iter(tasks))]


def _shift(test: str, finding: Finding) -> tuple[str, dict[str, Any] | None]:
    """A line, and the numbers of one test of one judge."""
    import numpy as np

    from lm_eval_lora_drop.statistics.significance import LEVEL, mean_test

    if test not in finding.shifts:
        return "no answers of an earlier day in the cache; repeat this command on another day", None
    shift: Shift = finding.shifts[test]
    known, missing = np.array(shift.known), len(shift.before) - len(shift.known)
    without = f"; {missing} without both scores" if missing else ""
    if len(known) < 2:
        return f"fewer than two outputs with both scores{without}", None
    before, after = known.T
    tested = mean_test(before, after)
    changes = after - before
    same, size = int((changes == 0).sum()), float(np.abs(changes).mean())
    numbers: dict[str, Any] = {
        "change": tested.difference,
        "interval": tested.interval,
        "p_value": tested.p_value,
        "mean_absolute_change": size,
        "same": same,
        "raised": int((changes > 0).sum()),
        "outputs": len(known),
    }
    ends = " to ".join(number(end, 1) for end in tested.interval)
    verdict = "significant" if tested.p_value < LEVEL else "not significant"
    text = f"{number(tested.difference, 1, sign=True)} ({ends}), {verdict}"
    if test == "repeat":
        text = f"mean absolute change {number(size, 1)}; same score for {same} of {len(known)}"
    elif test == "drift":
        then, now = (", ".join(models) or "unknown" for models in finding.served)
        text += f"; since {finding.since}" + (f"; {then} answered then, {now} today" if then != now else "")
        numbers |= {"since": str(finding.since), "served_then": finding.served[0], "served_today": finding.served[1]}
    else:
        text += f"; raised {numbers['raised']} of {len(known)}"
    return text + without, numbers


def _order(finding: Finding) -> tuple[str, dict[str, Any] | None]:
    from lm_eval_lora_drop.judge.pairwise import wilson

    order = finding.order
    if not order.both_orders:
        return (
            "no pairs: give two runs whose outputs differ" if not order.choices else "no verdict in both orders",
            None,
        )
    share = order.flips / order.both_orders
    low, high = wilson(share, order.both_orders)
    missing = len(order.choices) - order.both_orders
    text = f"position decided {percent(share)} of {order.both_orders} pairs ({percent(low)} to {percent(high)})"
    numbers = {"position_bias_rate": share, "interval": (low, high), "pairs": order.both_orders}
    return text + (f"; {missing} without verdict" if missing else ""), numbers
