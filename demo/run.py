"""The demo: find the best boundary of a small adapter, then test it beside the full adapter and the base model.

    python demo/run.py

Three stock `lm_eval` commands, each printed before it runs, so that they can be copied and changed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from prepare_model import FOLDER, MODEL_ID, is_prepared, prepare_model

from lm_eval_lora_drop.record.find import find_runs
from lm_eval_lora_drop.text import with_error

ROOT = Path(__file__).parents[1]
TASK = "lora_drop_demo"
METRIC = ("exact_match", "strict-match")
OUT = Path("out") / "demo"
SWEEP = "sweep_limit=48,sweep_dir=.demo/sweeps"
NOTE = """
The adapter has LoRA on all 30 layers. Which of them does it need? First the test documents are answered with the full
adapter and with the base model. Then all 31 boundaries are tried on 48 validation documents, and the test documents are
answered with the one that is chosen. Two to four minutes on two quiet cores."""


def main() -> int:
    """Run everything; the exit code of the first command that fails, 0 otherwise."""
    os.chdir(ROOT)
    if not is_prepared(FOLDER):
        print(f"Preparing {MODEL_ID} in {FOLDER.relative_to(ROOT)} (once, about 20 s)", flush=True)
    prepare_model(FOLDER)
    print(NOTE, flush=True)
    for boundary in ("full", "base"):
        code = run(boundary, "")
        if code:
            return code
    print(f"\nTest, before any layer is dropped:\n{test_rows(OUT)}", flush=True)
    # The last command is what a user runs, and its last screen is the answer.
    return run("auto", f",{SWEEP}")


def run(boundary: str, options: str) -> int:
    """Print and run one command; its exit code."""
    model = FOLDER.relative_to(ROOT)
    arguments = shlex.split(
        f"--model hf-lora-drop --model_args pretrained={model},peft=demo/adapter,boundary={boundary}{options} "
        f"--tasks {TASK} --batch_size 100 --output_path {OUT / boundary} --log_samples"
    )
    print(f"\n$ {shlex.join(['lm_eval', *arguments])}\n", flush=True)
    beside = Path(sys.executable).with_name("lm_eval")
    program = str(beside) if beside.exists() else shutil.which("lm_eval")
    if program is None:
        raise SystemExit("lm_eval is not installed beside this Python. Run `make demo`, which installs it.")
    return subprocess.run([program, *arguments], check=False).returncode  # noqa: S603  nothing of it is input


def test_rows(out: Path) -> str:
    """The test scores of the full adapter and of the base model, from the newest results file of each."""
    rows = []
    for boundary in ("full", "base"):
        runs, _ = find_runs([out / boundary])
        task = runs[-1].tasks[TASK]
        score = task.scores[METRIC]
        rows.append(f"  {boundary:5} {with_error(score.value, score.stderr)} on {task.documents_evaluated} documents")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
