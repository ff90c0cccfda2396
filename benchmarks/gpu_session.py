"""What to run where a GPU is lent for a quarter of an hour: the steps in order, stopped after 12 minutes.

    python -m benchmarks.gpu_session --dry-run    # what has to travel, what would run, and whether there is a GPU
    python -m benchmarks.gpu_session              # everything below out/gpu; the same command resumes

1. the demo's model on the device: shared pass against plain pass, fp32 and bf16 (`make test-gpu ARGS='--only real'`);
2. trainings, shortest first, three seeds each; an adapter is written when its training is done;
3. the shape of Llama-3.1-8B in bf16 with random weights: shared pass against one boundary after another.

The machine needs torch and transformers and no network: the other packages come as wheels (`pip wheel . --wheel-dir
out/gpu/wheels` where there is one), models and data as folders. A step gets the time that is left; one that does not
fit is stopped, and what it has written stays: finished adapters, checkpoints, the rows of a table.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
OUT = Path("out/gpu")
WHEELS = OUT / "wheels"
SMOLLM2, GEMMA = Path(".demo/SmolLM2-135M-Instruct"), Path(".demo/gemma-3-270m")
SAMSUM, GSM8K = Path("data/samsum"), Path("data/gsm8k")
MINUTES = 12
LAST_SECONDS = 180
"""Kept for the last step: trainings resume another day, the 8B shape needs the GPU."""
SEEDS = 3
EPOCHS = 3
DOCUMENTS = 2000


@dataclass(frozen=True)
class Step:
    """A command, the file that says it is done (None: its output is the result), and the folders that it reads."""

    name: str
    command: tuple[str, ...]
    done: Path | None
    needs: tuple[Path, ...]


def why_not(device: str) -> str | None:
    """Why nothing can be run on the device, None where it can."""
    if not device.startswith("cuda"):
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA. Install one with it (https://pytorch.org)."
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device: no GPU, or no driver for CUDA {torch.version.cuda}."
    return None


def steps() -> Iterator[Step]:
    """In the order in which they run."""
    gpu = (sys.executable, "-m", "benchmarks.gpu", "--only")
    yield Step("the demo's model", (*gpu, "real"), None, (SMOLLM2,))
    # Shortest first: by parameters and tokens of a document.
    for task, data, model in (
        ("lora_drop_demo", None, SMOLLM2),
        ("lora_drop_samsum", SAMSUM, SMOLLM2),
        ("lora_drop_gsm8k", GSM8K, SMOLLM2),
        ("lora_drop_samsum", SAMSUM, GEMMA),
    ):
        for seed in range(SEEDS):
            folder = OUT / "adapters" / f"{task.removeprefix('lora_drop_')}-{model.name}-seed{seed}"
            command = (
                *(sys.executable, "-m", "lm_eval_lora_drop.commands.main", "train"),
                *("--pretrained", str(model), "--task", task, "-o", str(folder), "--seed", str(seed)),
                *(
                    "--limit",
                    str(DOCUMENTS),
                    "--epochs",
                    str(EPOCHS),
                    "--max-length",
                    "1024",
                    "--learning-rate",
                    "3e-4",
                ),
                *(("--metadata", f'{{"data_dir": "{data}"}}') if data else ()),
            )
            needs = (model, data) if data else (model,)
            yield Step(f"training {folder.name}", command, folder / "training.json", needs)
    yield Step("the shape of Llama-3.1-8B", (*gpu, "8B"), None, ())


def install() -> None:
    """The packages that travelled, where ours or one that it needs is missing."""
    if WHEELS.is_dir() and not all(map(importlib.util.find_spec, ("lm_eval", "peft", "lm_eval_lora_drop"))):
        pip = (sys.executable, "-m", "pip", "install", "--no-index", "--find-links", str(WHEELS), "lm-eval-lora-drop")
        subprocess.run(pip, check=True)


def size(path: Path) -> str:
    """For the list of what travels."""
    if not path.is_dir():
        return "missing"
    return f"{sum(file.stat().st_size for file in path.rglob('*') if file.is_file()) / 1e6:,.0f} MB"


def state(step: Step) -> str:
    """`done`, what is missing, or `to do`."""
    if step.done is not None and step.done.is_file():
        return "done"
    missing = [str(path) for path in step.needs if not path.is_dir()]
    return f"skipped, missing: {', '.join(missing)}" if missing else "to do"


def run(step: Step, seconds: float) -> str:
    """Run one step for so long; how it ended."""
    log = OUT / f"{step.name.replace(' ', '-')}.txt"
    start = time.monotonic()
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(step.command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            # The process and those that it started: a sweep's benchmark, the processes of a table.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"stopped after {seconds:.0f} s, {log}"
    return f"{'done' if code == 0 else f'failed ({code})'} in {time.monotonic() - start:.0f} s, {log}"


def main() -> None:
    """Run what is not done until the time is over; without a GPU or with --dry-run say what would run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="stop after these (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="run nothing")
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    os.chdir(ROOT)
    reason = why_not("cuda:0")
    if args.dry_run or reason:
        print(f"No GPU: {reason}" if reason else "There is a GPU.")
        print("To travel with the checkout:")
        for path in (WHEELS, SMOLLM2, GEMMA, SAMSUM, GSM8K):
            print(f"  {path}: {size(path)}")
        print(f"In this order, {args.minutes:g} minutes together:")
        for step in steps():
            print(f"  {state(step)}: {step.name}\n    {shlex.join(step.command)}")
        sys.exit(0 if args.dry_run else "Not run.")
    OUT.mkdir(parents=True, exist_ok=True)
    install()
    *_, last = steps()
    for step in steps():
        left = end - time.monotonic() - (0 if step == last else LAST_SECONDS)
        if (found := state(step)) == "to do":
            found = run(step, left) if left > 0 else "not begun: no time left"
        print(f"{step.name}: {found}", flush=True)


if __name__ == "__main__":
    main()
