"""What the commands that ask judges share: the panel, its cost before, and its bill afterwards."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_lora_drop.commands.options import CommandFunction
from lm_eval_lora_drop.errors import ArgumentError

if TYPE_CHECKING:
    from lm_eval_lora_drop.judge.cache import Cache
    from lm_eval_lora_drop.judge.cache.spending import Usage
    from lm_eval_lora_drop.judge.panel import Panel
    from lm_eval_lora_drop.judge.questions import Question, Rubric

KEPT = "All answers received are cached; the same command resumes."


def with_cache(run: Callable[[argparse.Namespace, Cache], int]) -> CommandFunction:
    """A command that has the answers received so far, in a cache that is closed however it ends."""

    @functools.wraps(run)
    def opened(args: argparse.Namespace) -> int:
        from lm_eval_lora_drop.judge.cache import Cache

        with closing(Cache()) as cache:
            return run(args, cache)

    return opened


def add_panel(parser: argparse.ArgumentParser) -> None:
    """The options of every command that asks judges."""
    parser.add_argument("--panel", help="a panel file, or current, paper, local (default: LORA_DROP_JUDGES)")
    parser.add_argument(
        "--rubric", type=Path, metavar="FILE", help="rubric for any task, YAML: what is judged, criteria, scale"
    )
    parser.add_argument("--dry-run", action="store_true", help="print calls, tokens and dollars, and stop")
    parser.add_argument(
        "--max-spend", type=float, metavar="DOLLARS", help="maximum in US dollars; no call that could exceed it is made"
    )


def rubric_from(args: argparse.Namespace) -> Rubric | None:
    """The rubric that `--rubric` names."""
    from lm_eval_lora_drop.judge.questions import load_rubric

    return load_rubric(args.rubric) if args.rubric else None


def panel_given(args: argparse.Namespace) -> Panel:
    """The panel that `--panel` or the environment names, with the cap of `--max-spend`."""
    from dataclasses import replace

    from lm_eval_lora_drop.judge.panel import load_panel, panel_from

    panel = load_panel(args.panel) if args.panel else panel_from()
    if panel is None:
        raise ArgumentError("no panel: give --panel, a YAML file or one of current, paper, local.")
    if args.max_spend is None:
        return panel
    if not 0 <= args.max_spend <= 1e9:
        raise ArgumentError(f"--max-spend must be a number from 0 to 1e9, got {args.max_spend}.")
    return replace(panel, max_spend=args.max_spend)


def estimate_text(panel: Panel, questions: Mapping[str, Sequence[Question]], cache: Cache) -> str:
    """Calls, tokens and dollars of each judge and of all, at most."""
    from lm_eval_lora_drop.judge.score import estimate

    lines, total, unknown = [], 0.0, []
    for found in estimate(panel, questions, cache):
        price = "price missing" if found.dollars is None else f"at most ${found.dollars:.2f}"
        lines.append(
            f"{found.judge.name} ({found.judge.model}): {found.calls} calls, {found.cached} in the cache, about "
            f"{found.input_tokens:,} tokens in, at most {found.most_output_tokens:,} out, {price}"
        )
        total += found.dollars or 0.0
        unknown += [found.judge.name] if found.dollars is None else []
    known = f"at most ${total:.2f}" if len(unknown) < len(lines) else ""
    missing = f"what {', '.join(unknown)} cost (fill in `price` in the panel file)" if unknown else ""
    together = ", and ".join(filter(None, (known, missing)))
    return "\n".join([*lines, f"together {together}; an unreadable answer costs one more call"])


def bill_line(bill: Usage, panel: Panel) -> str:
    """What this command used, what these questions have used in all, and what is left."""
    said = f"{bill.calls} calls, ${bill.dollars:.4f} where prices are known"
    if bill.calls_before:
        said += f"; with earlier runs {bill.calls + bill.calls_before} calls, ${bill.dollars_in_all:.4f}"
    if bill.perhaps:
        said += f"; {bill.perhaps} calls without an answer are counted as billed"
    if panel.max_spend is not None:
        said += f"; ${max(0.0, panel.max_spend - bill.dollars_in_all):.4f} of ${panel.max_spend:g} left"
    return said
