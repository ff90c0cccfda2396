"""The test split under one boundary, with the full adapter beside it from one pass (`evaluate=`), and as two runs.

The same requests, the same batch size, one model. The answers of both runs are compared with those of the one pass; one
JSON line, in which `cost` is against the chosen boundary alone.

    python benchmarks/test_split.py
    python benchmarks/test_split.py --boundary 20 --documents 200
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import common
import torch

from lm_eval_lora_drop.options import parse_model_args
from lm_eval_lora_drop.record.journal import read_line

SIDES = {
    "chosen": "chosen",
    "full": "chosen",
    "chosen+full": "chosen+full",
    "chosen+full+base": "chosen+full+base",
    "base": "chosen",
}


def main() -> None:
    """Measure and print."""
    parser = common.parser(__doc__, documents=96)
    parser.add_argument("--boundary", type=int, default=26, help="what is kept by the chosen one")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2, help="rounds; the fastest of each side counts")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lm = common.load(args, batch_size=args.batch_size)
    task = common.demo_task()
    task.build_all_requests(limit=args.documents, rank=0, world_size=1)
    seconds: dict[str, float] = {}
    texts: dict[str, list[str]] = {}
    beside: dict[str, list[str]] = {}
    for _ in range(args.repeats):
        for side, evaluate in SIDES.items():
            boundary = side if side in ("full", "base") else str(args.boundary)
            with tempfile.TemporaryDirectory() as folder:
                given = {"boundary": boundary, "evaluate": evaluate, "sweep_dir": folder}
                lm.use(parse_model_args(given, known=())[0])
                start = time.perf_counter()
                texts[side] = lm.generate_until(task.instances, disable_tqdm=True)
                taken = time.perf_counter() - start
                seconds[side] = min(taken, seconds.get(side, taken))
                if "+" in side:
                    beside = answers(lm, task)
    common.emit(
        benchmark="test_split",
        documents=len(task.instances),
        boundary=args.boundary,
        batch_size=args.batch_size,
        dtype=args.dtype,
        seconds={side: round(value, 1) for side, value in seconds.items()},
        cost={side: seconds[side] / seconds["chosen"] for side in ("chosen+full", "chosen+full+base")},
        cost_of_runs={
            "chosen, full": (seconds["chosen"] + seconds["full"]) / seconds["chosen"],
            "chosen, full, base": (seconds["chosen"] + seconds["full"] + seconds["base"]) / seconds["chosen"],
        },
        differing={
            "chosen": differing(texts["chosen"], texts["chosen+full+base"]),
            **{
                side: differing(texts[side], beside.get(variant, []))
                for side, variant in (("full", full(lm)), ("base", "none"))
            },
        },
    )


def answers(lm: Any, task: Any) -> dict[str, list[str]]:
    """By variant the journaled answers, in the order of the task's requests."""
    (split,) = lm._state.splits.values()
    lines = [read_line(line) for line in split.journal.path.read_bytes().split(b"\n")[1:-1]]
    found = {(line["variant"], line["doc_id"]): line["responses"][0] for line in lines}
    variants = {variant for variant, _ in found}
    return {one: [found[one, request.doc_id] for request in task.instances] for one in variants}


def full(lm: Any) -> str:
    """The notation of the full adapter."""
    return f"0-{lm.shape.num_layers - 1}"


def differing(one: list[str], other: list[str]) -> int | None:
    """How many answers differ; None where one side gave none here (the harness answers first, the others later)."""
    return sum(a != b for a, b in zip(one, other, strict=True)) if other else None


if __name__ == "__main__":
    main()
