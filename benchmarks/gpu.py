"""Everything about the engine that only a GPU could refute, as one table; `make test-gpu` runs it.

Tiny models of many families, kinds of adapters and quantised bases are answered on the device by both passes and as the
evaluated split, and compared with the harness's own answers there (`matrix.py` does the same on a CPU); with the layers
spread over the devices where there are two. Then the demo's model: the whole sweep against one boundary after another,
in fp32 and bf16, with the answers that differ, launches, waits and peak memory. Under ten minutes on one GPU.

    make test-gpu                                # needs CUDA; says why where there is none
    python -m benchmarks.gpu --device cpu        # the same program where there is no GPU, slowly
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from benchmarks.matrix import in_a_process
from benchmarks.matrix_cases import Case, adapter_cases, family_cases, quantised_cases
from benchmarks.matrix_run import CRASH, WRONG

ROOT = Path(__file__).parents[1]
FAMILIES = (
    *("bloom", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "gpt_oss", "llama", "mistral", "mixtral", "mpt", "opt"),
    *("phi", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3"),
)
ADAPTERS = ("use_rslora", "use_dora", "modules_to_save lm_head", "on embed_tokens", "two at once, each its boundaries")
SECONDS = 60
Row = list[Any]


def why_not(device: str) -> str | None:
    """Why nothing can be run on the device, None where it can."""
    if not device.startswith("cuda"):
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA. Install one with it (https://pytorch.org)."
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device: no GPU, or no driver for CUDA {torch.version.cuda}."
    return None


def cases(device: str) -> Iterator[Case]:
    """The tiny models, on one device, and spread over all of them where there are several."""
    families = [case for case in family_cases() if case.name in FAMILIES and case.detail == "all linear"]
    chosen = [*families, *(case for case in adapter_cases() if case.name in ADAPTERS), *quantised_cases()]
    for case in chosen:
        yield replace(case, model_args={**case.model_args, "device": device})
    if device.startswith("cuda") and torch.cuda.device_count() > 1:
        for case in families:
            spread = {**case.model_args, "parallelize": True}
            yield replace(case, detail=f"{case.detail}, {torch.cuda.device_count()} devices", model_args=spread)


def small_models(device: str) -> Iterator[Row]:
    """A row for each tiny model."""
    for case in cases(device):
        outcomes = in_a_process(case, SECONDS, start="spawn")
        whys = dict.fromkeys(one["why"] for one in outcomes.values() if one.get("why"))
        kinds = [outcomes.get(kind, {}).get("what", "") for kind in ("generate_until", "loglikelihood", "evaluated")]
        yield [case.group, f"{case.name}{', ' * bool(case.detail)}{case.detail}", *kinds, "; ".join(whys)[:80]]


def real_model(device: str) -> Iterator[Row]:
    """What benchmarks/sweep.py finds on the demo's model."""
    for dtype, every in (("float32", "5"), ("bfloat16", "6")):
        command = [
            *(sys.executable, str(ROOT / "benchmarks" / "sweep.py"), "--device", device, "--dtype", dtype),
            *("--documents", "48", "--plain-batch-sizes", "16", "48", "--plain-every", every),
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            yield ["SmolLM2-135M", dtype, CRASH, "", "", (done.stderr.strip().splitlines() or ["no output"])[-1][:80]]
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        for name in (
            *("shared_seconds", "ratio", "compared", "mismatches", "mismatches_of_plain_with_itself"),
            *("excess_interval", "shared_gigabytes"),
            *("shared_launches", "plain_launches", "shared_waits", "plain_waits"),
        ):
            if name in found:
                yield ["SmolLM2-135M", dtype, name.replace("_", " "), found[name], "", ""]
        if dtype == "float32" and found["mismatches"] > found["mismatches_of_plain_with_itself"]:
            yield ["SmolLM2-135M", dtype, WRONG, "", "", "more answers differ than the plain pass's own"]


def main() -> None:
    """Print the table; the status is 1 where something is wrong, crashed, or nothing could be run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--only", choices=("small", "real"), help="the tiny models, or the demo's")
    args = parser.parse_args()
    if reason := why_not(args.device):
        sys.exit(f"Not run: {reason}")
    start = time.monotonic()
    name = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else args.device
    rows: list[Row] = []
    for part, run in (("small", small_models), ("real", real_model)):
        if args.only in (None, part):
            for row in run(args.device):
                print(*(cell for cell in row if cell != ""), sep="  ", file=sys.stderr, flush=True)
                rows.append(row)
    print(tabulate(rows, headers=["what", "case", "generation", "log-likelihood", "evaluated split", "why"]))
    bad = sum(cell in (WRONG, CRASH) for row in rows for cell in row)
    seconds = time.monotonic() - start
    print(f"\n{name}, torch {torch.__version__}: {len(rows)} rows, {bad} wrong or crashed, {seconds:.0f} s")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
