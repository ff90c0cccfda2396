"""Everything about the engine that only a GPU could refute, as one table; `make test-gpu` runs it.

The whole matrix on the device (`matrix.py`): tiny models of every family, kinds of adapters and requests, quantised
bases, answered by both passes and as the evaluated split, and compared with the harness's own answers there; with the
layers spread over the devices where there are two. Then the demo's model: the whole sweep against one boundary after
another, in fp32 and bf16, with the answers that differ, launches, waits and peak memory. Then the same on a model with
the shape of Llama-3.1-8B and random weights. Under ten minutes on one GPU and 16 cores.

    make test-gpu                                # needs CUDA; says why where there is none
    make test-gpu ARGS='--only quantised real'   # these parts of it
    python -m benchmarks.gpu --device cpu        # the same program where there is no GPU, slowly
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from benchmarks.gpu_session import why_not
from benchmarks.matrix import TITLES, all_cases, in_a_process
from benchmarks.matrix_cases import Case
from benchmarks.matrix_run import CRASH, WRONG

ROOT = Path(__file__).parents[1]
SECONDS = 120
REAL, LARGE = "real", "8B"
Row = list[Any]


def cases(device: str, groups: Sequence[str]) -> Iterator[Case]:
    """The tiny models, on one device, and spread over all of them where there are several."""
    chosen = [case for case in all_cases() if case.group in groups]
    for case in chosen:
        yield replace(case, model_args={**case.model_args, "device": device})
    if device.startswith("cuda") and torch.cuda.device_count() > 1:
        for case in chosen:
            if case.group == "families":
                spread = {**case.model_args, "parallelize": True}
                yield replace(case, detail=f"{case.detail}, {torch.cuda.device_count()} devices", model_args=spread)


def small_models(device: str, groups: Sequence[str]) -> Iterator[Row]:
    """A row for each tiny model, one process for each core."""
    # bitsandbytes takes hold of the GPU when it is imported; what is forked from there can have it no more.
    start = "spawn" if importlib.util.find_spec("bitsandbytes") else "forkserver"

    def run(case: Case) -> Row:
        outcomes = in_a_process(case, SECONDS, start)
        whys = dict.fromkeys(one["why"] for one in outcomes.values() if one.get("why"))
        kinds = [
            outcomes.get(kind, {}).get("what", "")
            for kind in ("generate_until", "loglikelihood", "loglikelihood_rolling", "evaluated")
        ]
        detail = f"{case.name}{', ' * bool(case.detail)}{case.detail}"
        return [case.group, detail, *kinds, "; ".join(whys)[:160]]

    with ThreadPoolExecutor(min(14, os.cpu_count() or 1)) as pool:
        yield from pool.map(run, cases(device, groups))


def real_model(device: str, parts: Sequence[str]) -> Iterator[Row]:
    """What benchmarks/sweep.py finds on the demo's model (part `real`), and on a large one (`8B`)."""
    sizes = ["--documents", "48", "--plain-batch-sizes", "16", "48"]
    for name, dtype, more in (
        ("SmolLM2-135M", "float32", ["--plain-every", "5"]),
        ("SmolLM2-135M", "bfloat16", ["--plain-every", "6"]),
        ("Llama-3.1-8B", "bfloat16", ["--plain-every", "16", "--shape", "Llama-3.1-8B"]),
    ):
        large = "--shape" in more
        if (LARGE if large else REAL) not in parts or (large and not device.startswith("cuda")):
            continue
        program = str(ROOT / "benchmarks" / "sweep.py")
        command = [sys.executable, program, "--device", device, "--dtype", dtype, *sizes, *more]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            why = (done.stderr.strip().splitlines() or ["no output"])[-1][:160]
            yield [name, dtype, CRASH, "", "", "", why]
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        figures = ["plain_seconds", "shared_seconds", "ratio", "rows", "plain_gigabytes", "shared_gigabytes"]
        if not large:
            figures += ["compared", "mismatches", "mismatches_of_plain_with_itself", "excess_interval"]
        for figure in (*figures, "shared_launches", "plain_launches", "shared_waits", "plain_waits"):
            if figure in found:
                yield [name, dtype, figure.replace("_", " "), found[figure], "", "", ""]
        if dtype == "float32" and found["mismatches"] > found["mismatches_of_plain_with_itself"]:
            yield [name, dtype, WRONG, "", "", "", "more answers differ than the plain pass's own"]


def main() -> None:
    """Print the table; the status is 1 where something is wrong, crashed, or nothing could be run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parts = (*TITLES, REAL, LARGE)
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="these parts")
    args = parser.parse_args()
    if reason := why_not(args.device):
        sys.exit(f"Not run: {reason}")
    # Whether there is CUDA is asked when libraries are imported; asked in the usual way, no fork could use it any more.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    start = time.monotonic()
    name = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else args.device
    rows: list[Row] = []
    for row in chain(small_models(args.device, args.only), real_model(args.device, args.only)):
        print(*(cell for cell in row if cell != ""), sep="  ", file=sys.stderr, flush=True)
        rows.append(row)
    print(tabulate(rows, headers=["what", "case", "generation", "log-likelihood", "rolling", "evaluated split", "why"]))
    said = Counter(cell for row in rows if row[0] in TITLES for cell in row[2:6] if cell)
    print("\n" + ", ".join(f"{what}: {count}" for what, count in said.most_common()))
    bad = sum(cell in (WRONG, CRASH) for row in rows for cell in row)
    seconds = time.monotonic() - start
    print(f"\n{name}, torch {torch.__version__}: {len(rows)} rows, {bad} wrong or crashed, {seconds:.0f} s")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
