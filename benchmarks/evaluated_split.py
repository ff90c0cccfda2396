"""The evaluated split under one boundary: `--model hf` with peft=, against hf-lora-drop without and with merge=true.

The same requests, the same batch size; the answers of the demo are of uneven length. One JSON line per batch size.
Near-ties that came out differently are counted and listed.

    python benchmarks/evaluated_split.py
    python benchmarks/evaluated_split.py --batch-sizes 16 --boundary base
"""

from __future__ import annotations

import time
from typing import Any

import common
import torch
from lm_eval.models.huggingface import HFLM


def main() -> None:
    """Measure and print."""
    parser = common.parser(__doc__, documents=48)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument(
        "--boundary", choices=["full", "base"], default="full", help="base: answers of very uneven length, no LoRA"
    )
    parser.add_argument("--repeats", type=int, default=2, help="rounds; the fastest of each side counts")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    task = common.demo_task()
    task.build_all_requests(limit=args.documents, rank=0, world_size=1)
    given = {"pretrained": args.pretrained, "dtype": args.dtype, "device": args.device}
    if args.boundary == "full":
        given["peft"] = args.peft
    sides = {
        "hf": HFLM(**given),
        "plain": common.load(args, boundary=args.boundary),
        "merged": common.load(args, boundary=args.boundary, merge=True),
    }
    for size in args.batch_sizes:
        seconds: dict[str, float] = {}
        texts: dict[str, list[str]] = {}
        for _ in range(args.repeats):
            for name, lm in sides.items():
                lm.batch_size_per_gpu = size
                taken, texts[name] = answer(lm, task.instances)
                seconds[name] = min(taken, seconds.get(name, taken))
        differing = {
            name: [[a, b] for a, b in zip(texts["hf"], texts[name], strict=True) if a != b]
            for name in ("plain", "merged")
        }
        common.emit(
            benchmark="evaluated_split",
            boundary=args.boundary,
            documents=len(task.instances),
            batch_size=size,
            seconds={name: round(value, 1) for name, value in seconds.items()},
            ratio_plain=seconds["hf"] / seconds["plain"],
            ratio_merged=seconds["hf"] / seconds["merged"],
            mismatches={name: len(pairs) for name, pairs in differing.items()},
            differing=differing,
        )


def answer(lm: Any, instances: list[Any]) -> tuple[float, list[str]]:
    """Seconds, and the answers."""
    start = time.perf_counter()
    texts = lm.generate_until(instances, disable_tqdm=True)
    return time.perf_counter() - start, texts


if __name__ == "__main__":
    main()
