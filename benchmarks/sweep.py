"""A sweep's generations by the shared pass against the plain one, in one run; with --racing also racing on top.

The plain pass takes one candidate after another, at its best batch size of those given. --plain-every N measures every
Nth of them and scales up, and the JSON line says so. --candidates takes other candidates than boundaries, --peft a+b+c
those of several adapters. With --examples every prompt begins alike, which the shared pass reads once. Memory is the
most that each pass had in use beyond what the loaded model has. With --shape the model has the size of a larger one and
random weights, whose answers flip at every rounding: its differences mean nothing.

    python benchmarks/sweep.py
    python benchmarks/sweep.py --documents 100 --racing --plain-every 5
    python benchmarks/sweep.py --documents 16 --examples 8 --plain-every 15 --plain-batch-sizes 16
    python benchmarks/sweep.py --candidates strength --plain-every 3
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from torch import nn
from torch.utils.benchmark import Timer

from lm_eval_lora_drop.engine.kernels import fast_products
from lm_eval_lora_drop.engine.plain import plain_runner
from lm_eval_lora_drop.engine.session import Counters
from lm_eval_lora_drop.engine.shared import shared_runner
from lm_eval_lora_drop.harness.documents import Document
from lm_eval_lora_drop.options import parse_model_args
from lm_eval_lora_drop.statistics.significance import mean_test
from lm_eval_lora_drop.sweep import documents as validation
from lm_eval_lora_drop.sweep.backend import Work
from lm_eval_lora_drop.sweep.candidates import make_candidates
from lm_eval_lora_drop.sweep.search import Search
from lm_eval_lora_drop.variant import Variant


def main() -> None:
    """Measure and print."""
    parser = common.parser(__doc__, documents=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--examples", type=int, default=0, help="the same solved examples before each question")
    parser.add_argument("--plain-batch-sizes", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--candidates", default="boundary", help="as sweep_candidates")
    parser.add_argument("--plain-every", type=int, default=1, metavar="N", help="measure the plain pass on every Nth")
    parser.add_argument("--rows", type=int, help="rows per batch of the shared pass (default: its own choice)")
    parser.add_argument("--racing", action="store_true", help="also a whole search by racing")
    parser.add_argument("--profile", action="store_true", help="print where the shared pass spends its time")
    args = parser.parse_args()
    lm = common.load(args)
    drawn = validation.draw(common.bind(common.demo_task(args.new_tokens, args.examples)), args.documents, seed=0)
    assert drawn is not None
    variants = make_candidates(args.candidates.split("+"), lm.shape).variants
    work = [Work(document, variants) for document in drawn.documents]

    counters = Counters()
    memory = common.Memory(lm.device)
    shared_seconds, shared = common.timed(shared_runner(lm, lm.layers, args.rows, counters), work)
    shared_gigabytes = memory.gigabytes()
    say(f"all {len(variants)} candidates at once: {shared_seconds:.1f} s")

    measured = variants[:: args.plain_every]
    plain_seconds, plain_gigabytes = {}, {}
    by_size = []
    for size in args.plain_batch_sizes:
        lm.batch_size_per_gpu = size
        memory = common.Memory(lm.device)
        seconds, plain = common.timed(
            plain_runner(lm, lm.layers), [Work(document, measured) for document in drawn.documents]
        )
        plain_seconds[size] = seconds * len(variants) / len(measured)
        plain_gigabytes[size] = memory.gigabytes()
        say(f"{len(measured)} candidates one after another at batch {size}: {seconds:.1f} s")
        by_size.append(plain)
    best = min(plain_seconds.values())
    figures = {
        "benchmark": "sweep",
        "documents": len(work),
        "candidate_set": args.candidates,
        "candidates": len(variants),
        "new_tokens": args.new_tokens,
        "examples": args.examples,
        "dtype": args.dtype,
        **({"quantised": args.quantise} if args.quantise else {}),
        **({"shape": args.shape} if args.shape else {}),
        "plain_seconds": {size: round(seconds, 1) for size, seconds in plain_seconds.items()},
        "plain_measured": len(measured),
        "shared_seconds": shared_seconds,
        "ratio": best / shared_seconds,
        "compared": len(plain),
        "mismatches": sum(shared[key] != responses for key, responses in plain.items()),
        **flips(shared, by_size[0], plain),
        "rows": counters.rows,
        "layer_rows": counters.layer_rows,
        "layer_tokens": counters.layer_tokens,
        "shared_gigabytes": shared_gigabytes,
        "plain_gigabytes": plain_gigabytes,
    }
    if lm.device.type == "cuda":
        figures |= device_calls(lm, drawn.documents[:4], measured)
    if args.racing:
        figures |= race(args, lm, best)
    common.emit(**figures)
    if args.profile:
        profile(lm, work)
        least_time(lm, counters.layer_tokens)


def flips(shared: Any, first: Any, plain: Any) -> dict[str, Any]:
    """How much of the mismatches the shape of a batch alone does: the plain pass at its first batch size against its
    last. With the excess of the shared pass over that, as a share of all answers, and its interval; the answers of a
    document count as one."""
    by_shape = np.array([first[key] != responses for key, responses in plain.items()], dtype=float)
    by_pass = np.array([shared[key] != responses for key, responses in plain.items()], dtype=float)
    documents = np.unique([doc_id for _, doc_id in plain], return_inverse=True)[1]
    found: dict[str, Any] = {"mismatches_of_plain_with_itself": int(by_shape.sum())}
    if by_shape.any() or by_pass.any():
        excess = mean_test(by_shape, by_pass, clusters=documents)
        found |= {"excess": excess.difference, "excess_interval": [round(float(one), 4) for one in excess.interval]}
    return found


def say(text: str) -> None:
    """How far it is."""
    print(text, file=sys.stderr, flush=True)


def device_calls(lm: Any, documents: Sequence[Document], variants: Sequence[Variant]) -> dict[str, Any]:
    """Kernels that the host launches for a GPU, and times it waits for it, in each pass over a few short answers: the
    profiler takes longer for each launch than the launch."""
    work = [Work(shortened(document), tuple(variants)) for document in documents]
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    found = {}
    for name, runner in (
        ("shared", shared_runner(lm, lm.layers)),
        ("plain", plain_runner(lm, lm.layers)),
    ):
        with torch.profiler.profile(activities=kinds) as profiled:
            common.timed(runner, work)
        counts = {event.key: event.count for event in profiled.key_averages()}
        found[f"{name}_launches"] = sum(count for key, count in counts.items() if "LaunchKernel" in key)
        found[f"{name}_waits"] = sum(count for key, count in counts.items() if key.endswith("Synchronize"))
    return found


def shortened(document: Document) -> Document:
    """The same document, asked for four tokens."""
    requests = tuple(
        replace(request, arguments=(request.args[0], {**request.args[1], "max_gen_toks": 4}))
        for request in document.requests
    )
    return replace(document, requests=requests)


def race(args, lm, plain_seconds):  # type: ignore[no-untyped-def]
    """A whole search by racing, scoring and journal included."""
    with tempfile.TemporaryDirectory() as folder:
        racing = {"boundary": "auto", "sweep_strategy": "racing", "sweep_limit": args.documents, "sweep_dir": folder}
        lm.use(parse_model_args(racing, ())[0])
        start = time.perf_counter()
        found = Search(lm, lm.args, Path(folder)).decide(common.bind(common.demo_task(args.new_tokens, args.examples)))
        seconds = time.perf_counter() - start
    assert found.sweep is not None
    return {
        "racing_seconds": seconds,
        "check_seconds": (found.sweep.check or {}).get("seconds"),
        "racing_ratio": plain_seconds / seconds,
        "racing_boundary": found.kept.boundary,
        "racing_pairs": sum(row.documents + row.unscored for row in found.sweep.candidates),
    }


def profile(lm, work):  # type: ignore[no-untyped-def]
    """The operations that take the shared pass's time."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        common.timed(shared_runner(lm, lm.layers), work[:16])
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40))


@torch.inference_mode()
def least_time(lm, layer_tokens):  # type: ignore[no-untyped-def]
    """What the products with the decoder layers' own weights would take at the rate of a large one."""
    named = lm.layers.decoder_layers[0].named_modules()
    linear = [module for name, module in named if type(module) is nn.Linear and "lora_" not in name]
    widest = max(linear, key=lambda module: module.weight.numel())
    states = torch.randn(4096, widest.in_features, dtype=widest.weight.dtype, device=lm.device)
    with fast_products(lm):
        product = Timer(
            "layer(states)", globals={"layer": widest, "states": states}, num_threads=torch.get_num_threads()
        )
        seconds = product.blocked_autorange(min_run_time=2).median
    rate = 2 * len(states) * widest.weight.numel() / seconds
    work = 2 * sum(module.weight.numel() for module in linear) * layer_tokens
    print(f"{work / 1e12:.2f} TFLOP in the layers' products; at {rate / 1e9:.0f} GFLOP/s {work / rate:.0f} s")


if __name__ == "__main__":
    main()
