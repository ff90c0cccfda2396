"""What it takes to judge the 819 summaries of SAMSum's test split, for each way of asking.

    python benchmarks/cost_judges.py ../shared/data/samsum/test.jsonl

Counts the tokens of the prompts that `lora-drop judge` would send, by its own estimate (four bytes each), with the
references in place of outputs; a file with fewer than 819 dialogues is scaled up. The audit is of 30 outputs and 30
pairs. Output tokens are the fifteen or so
of `{"score": 7}`; a model that thinks adds its thoughts, up to `max_tokens` for each call.
"""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from lm_eval_lora_drop.judge.audit import Audit
from lm_eval_lora_drop.judge.cache import Cache
from lm_eval_lora_drop.judge.cache.spending import tokens_of
from lm_eval_lora_drop.judge.pairwise import Pair, both_orders
from lm_eval_lora_drop.judge.panel import load_panel, parse_panel
from lm_eval_lora_drop.judge.score import Item, questions, rubric_of

SUMMARIES = 819
ANSWER = 15
AUDITED = 30
JUDGE = {"judges": [{"provider": "openai", "model": "m"}]}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="SAMSum's test split, JSON lines with dialogue and summary")
    rows = [json.loads(line) for line in parser.parse_args().file.read_text(encoding="utf-8").split("\n") if line]
    items = [Item("summary", row["dialogue"], row["summary"], row["summary"]) for row in rows]
    pairs = [
        Pair(i, "summary", row["dialogue"], row["summary"], row["summary"], "another") for i, row in enumerate(rows)
    ]
    criteria = load_panel("paper").criteria
    print("| way | calls per judge | tokens in | tokens out |\n|---|---|---|---|")
    for name, settings in (
        ("score", {}),
        ("score with the paper's criteria", {"criteria": criteria}),
        ("score, `samples: 4`", {"samples": 4}),
        ("pairwise, both orders", None),
    ):
        panel = parse_panel({**JUDGE, **(settings or {})}, "a panel")
        judge = panel.judges[0]
        if settings is None:
            asked = both_orders(panel, pairs, judge)
        else:
            asked = questions(judge, panel, items, rubric_of(panel, items, None))
        calls = len(asked) * SUMMARIES / len(rows)
        read = sum(tokens_of(question.prompt) for question in asked) * SUMMARIES / len(rows)
        print(f"| {name} | {calls:,.0f} | {round(read, -3):,.0f} | {round(calls * ANSWER, -2):,.0f} |")
    panel = parse_panel(JUDGE, "a panel")
    with TemporaryDirectory() as folder, closing(Cache(Path(folder) / "judges.sqlite")) as cache:
        asked = Audit(panel, items[:AUDITED], pairs[:AUDITED]).questions(panel.judges[0], cache)
    read = sum(tokens_of(question.prompt) for question in asked)
    name = f"audit of {AUDITED} outputs and {AUDITED} pairs"
    print(f"| {name} | {len(asked)} | {round(read, -3):,.0f} | {round(len(asked) * ANSWER, -2):,.0f} |")


if __name__ == "__main__":
    main()
