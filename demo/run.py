"""The demo: find the best boundary of a small adapter, and test it beside the full adapter and the base model.

    python demo/run.py

One stock `lm_eval` command, printed before it runs, so that it can be copied and changed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from prepare_model import FOLDER, MODEL_ID, is_prepared, prepare_model

ROOT = Path(__file__).parents[1]
MODEL = FOLDER.relative_to(ROOT)
# Below K = 15 the adapter has nothing left to lose: every third K is enough there.
MODEL_ARGS = (
    f"pretrained={MODEL},peft=demo/adapter,boundary=auto,evaluate=chosen+full+base,"
    "sweep_boundaries=0-12:3+15-30,sweep_limit=48,sweep_dir=.demo/sweeps"
)
COMMAND = (
    *("lm_eval", "--model", "hf-lora-drop", "--model_args", MODEL_ARGS, "--tasks", "lora_drop_demo"),
    *("--batch_size", "100", "--output_path", "out/demo/auto", "--log_samples"),
)
NOTE = """
The adapter has LoRA on all 30 layers. Which of them does it need? 21 boundaries are tried on 48 validation documents,
all in one pass. Then 100 test documents are answered with the boundary that is chosen, with the full adapter and with
the base model. Some three minutes on two quiet cores."""


def main() -> int:
    """Prepare the model, print the command and run it; its exit code."""
    os.chdir(ROOT)
    if not is_prepared(FOLDER):
        print(f"Preparing {MODEL_ID} in {MODEL} (once, about 20 s)", flush=True)
    prepare_model(FOLDER)
    print(f"{NOTE}\n\n$ {shlex.join(COMMAND)}\n", flush=True)
    beside = Path(sys.executable).with_name("lm_eval")
    program = str(beside) if beside.exists() else shutil.which("lm_eval")
    if program is None:
        raise SystemExit("lm_eval is not installed beside this Python. Run `make demo`, which installs it.")
    return subprocess.run([program, *COMMAND[1:]], check=False).returncode  # noqa: S603  nothing of it is input


if __name__ == "__main__":
    sys.exit(main())
