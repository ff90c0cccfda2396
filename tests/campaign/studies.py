"""A study that is killed: does the same command, started again, end with what one that was never killed ends with?

    python -m tests.campaign.studies [--kills 20] [--seed 0] [--folder .campaign/studies]

A small study on a small model, trainings included, in processes forked from this one, each killed by SIGKILL at a
random moment. The kills are spread so that one study takes all of them; one that ends earlier is compared, and another
one takes the rest. Compared are the table, the report, every adapter's tensors, what every cell answered, and what is
left lying about.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from lm_eval_lora_drop.commands import main as cli
from lm_eval_lora_drop.record.find import find_runs
from lm_eval_lora_drop.record.fingerprint import digest
from lm_eval_lora_drop.study.config import Study, read_study
from lm_eval_lora_drop.study.pages import write_report  # noqa: F401  imported before the first fork, as what follows
from lm_eval_lora_drop.study.plan import cell_folder, plan
from lm_eval_lora_drop.study.run import run_study  # noqa: F401
from lm_eval_lora_drop.study.trainings import adapter_folder
from lm_eval_lora_drop.train import run as training_run  # noqa: F401
from testing.studies import table_of
from testing.tiny import make_base
from testing.toy import CHOICE, write_task
from tests.campaign.tries import load, options, print_table, save

DEMO = {"train_documents": 12, "validation_documents": 6, "test_documents": 5}
_SAID = re.compile(r"study\.run:\d+\] (training|cell) (.*)")


def make(folder: Path) -> Path:
    """A small model, a task of its own, and the study's file; its sweeps are kept in the study's folder."""
    base = make_base(folder / "base")
    draw, splits = random.Random(0), {}
    for split, size in (("train", 16), ("validation", 12), ("test", 60)):
        # Words without sense: which one a random model finds likeliest changes with any of its weights.
        words = [["".join(draw.choices("abcdefghij", k=6)) for _ in range(4)] for _ in range(size)]
        splits[split] = [
            {"question": f"The {split} word of {number * 7} is", "choices": four, "label": number % 4}
            for number, four in enumerate(words)
        ]
    write_task(folder, "words", splits, **CHOICE)
    training = {
        "epochs": 3, "batch_size": 4, "learning_rate": 0.02, "max_length": 200, "precision": "float32",
        "lora_dropout": 0.1, "hold_out": 0, "checkpoints": 6,
    }  # fmt: skip
    study = {
        "model_args": {"pretrained": str(base), "dtype": "float32", "device": "cpu", "sweep_limit": 6},
        "include_path": str(folder),
        "tasks": {
            "words": {"task": "words", "training": training},
            "problems": {
                "task": "lora_drop_demo", "metadata": DEMO, "training": training,
                "metrics": ["reference_loglikelihood"],
            },
        },
        "evaluation": {"bootstrap_iters": 0, "batch_size": 2},
        "trainings": {"full": {"seeds": [0, 1]}, "bottom": {"layers": "0-2", "tasks": ["words"], "choices": ["full"]}},
        "choices": ["full", "base", "auto", 3],
        "output": str(folder / "whole"),
    }  # fmt: skip
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study, sort_keys=False))
    return file


def start(file: Path, output: Path, said: Path) -> int:
    """The command in a process of its own; returns its id."""
    said.unlink(missing_ok=True)
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        # Whoever forks may have put something else in their place, which log handlers hold on to.
        sys.stdout, sys.stderr = (os.fdopen(one, "w", buffering=1, closefd=False) for one in (1, 2))
        for name in (None, *logging.root.manager.loggerDict):
            for handler in logging.getLogger(name).handlers:
                if isinstance(handler, logging.StreamHandler):
                    handler.setStream(sys.stderr)
        # Sweeps of one study must not find those of another.
        study = yaml.safe_load(file.read_text())
        study["model_args"]["sweep_dir"] = str(output / "sweeps")
        mine = output.with_suffix(".yaml")
        mine.write_text(yaml.safe_dump(study, sort_keys=False))
        code = cli.main(["study", "--config", str(mine), "--output", str(output), "--threads", "1"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended(child: int) -> int:
    """Wait for a study to end by itself; its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(child: int, said: Path, draw: random.Random, seconds: float) -> str | None:
    """Kill it at a moment up to `seconds` after it began to work (one in ten: before that); what it was at, or None
    where it had ended before."""
    if draw.random() < 0.1:
        time.sleep(draw.uniform(0, 2))
    else:
        began(child, said)
        time.sleep(draw.uniform(0, seconds))
    os.kill(child, signal.SIGKILL)
    if ended(child) != -signal.SIGKILL:
        return None
    steps = _SAID.findall(said.read_text())
    return "start" if not steps else "sweep or its cell" if "auto" in steps[-1][1] else steps[-1][0]


def began(child: int, said: Path) -> float:
    """Wait until a study is at its first training or cell; when that was."""
    while not (said.exists() and _SAID.search(said.read_text())) and not _is_over(child):
        time.sleep(0.01)
    return time.monotonic()


def _is_over(child: int) -> bool:
    """Without taking the exit code, which is waited for later."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def outcome(study: Study) -> dict[str, Any]:
    """What a finished study holds, without times and places."""
    cells = [cell for unit in plan(study) for cell in unit.cells]
    runs = [find_runs([cell_folder(study, cell)]) for cell in cells]
    folders = [adapter_folder(study, one) for one in study.trainings]
    return {
        "table": table_of(study.output),
        "report": (study.output / "report.md").read_text(),
        "adapters": [digest((one / "adapter_model.safetensors").read_bytes().hex()) for one in folders],
        "losses": [json.loads((one / "training.json").read_text())["steps"] for one in folders],
        "answers": [[sample.raw for run in found for sample in run.tasks[cell.task.task].samples()]
                    for cell, (found, _) in zip(cells, runs, strict=True)],
        "runs": [(len(found), len(issues)) for found, issues in runs],
        "left over": sorted({path.name for one in folders for path in one.iterdir() if path.name[0] != "."}),
    }  # fmt: skip


def differing(study: Study, whole: Study) -> list[str]:
    """The parts in which two finished studies differ."""
    mine, theirs = outcome(study), outcome(whole)
    return [part for part in mine if mine[part] != theirs[part]]


def main() -> int:
    """Run, or go on; 1 where anything failed."""
    args = options(__doc__, "studies", kills=20).parse_args()
    folder = args.folder.absolute()
    state = {
        "kills": 0, "studies": 0, "differ": 0, "at": {},
        **load(folder, {"kills": args.kills, "seed": args.seed}),
    }  # fmt: skip
    for name in ("whole", "sweeps"):
        shutil.rmtree(folder / name, ignore_errors=True)
    file = make(folder)
    child = start(file, folder / "whole", folder / "whole.txt")
    begin = began(child, folder / "whole.txt")
    if ended(child):
        raise SystemExit(f"the study that is not killed fails: {folder / 'whole.txt'}")
    whole, seconds = read_study(file), time.monotonic() - begin
    while state["kills"] < args.kills or (folder / f"study{state['studies']}").exists():
        number = state["studies"]
        output = folder / f"study{number}"
        study = read_study(file, output)
        while True:
            draw = random.Random(f"{args.seed} {number} {state['kills']}")
            child = start(file, output, folder / "said.txt")
            if state["kills"] == args.kills:
                code = ended(child)
                break
            at = killed(child, folder / "said.txt", draw, 2 * seconds / args.kills)
            if at is None:
                code = 0
                break
            state["kills"] += 1
            state["at"][at] = state["at"].get(at, 0) + 1
            save(folder, state)
        state["studies"] += 1
        parts = differing(study, whole) if code == 0 else [f"exit code {code}"]
        state["differ"] += bool(parts)
        if parts:
            state["failures"].append(f"study {number}: {', '.join(parts)} (in {output})")
        else:
            shutil.rmtree(output)
        save(folder, state)
    at = ", ".join(f"{times} in {what}" for what, times in Counter(state["at"]).most_common())
    print(f"{state['kills']} kills of {state['studies']} studies ({at})")
    rows = [
        (
            f"studies killed {args.kills} times in all: another end than without a kill",
            state["studies"],
            state["differ"],
        )
    ]
    return print_table(rows, state["failures"])


if __name__ == "__main__":
    sys.exit(main())
