"""The demo: find the best boundary of a small adapter, then test it beside the whole adapter and the base model.

    python demo/run.py

Three stock `lm_eval` commands, each printed before it runs, so that they can be copied and changed.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from prepare_model import FOLDER, MODEL_ID, is_prepared, prepare_model

ROOT = Path(__file__).parents[1]
TASK = "lora_drop_demo"
METRIC = "exact_match,strict-match"
OUT = Path("out") / "demo"
SWEEP = "sweep_limit=48,sweep_select=one_se,sweep_dir=.demo/sweeps"
NOTE = """
The adapter has LoRA on all 30 layers. Which of them does it need? All 31 boundaries are tried on 48 validation
documents; sweep_select=one_se takes the smallest K whose score is within one standard error of the best. Then the test
documents are answered with that K, with the whole adapter and with the base model. Under 5 minutes on two cores."""


def main() -> int:
    """Run everything and print the summary; the exit code of the first command that fails otherwise."""
    os.chdir(ROOT)
    if not is_prepared(FOLDER):
        print(f"Preparing {MODEL_ID} in {FOLDER.relative_to(ROOT)} (once, about 20 s)", flush=True)
    prepare_model(FOLDER)
    print(NOTE, flush=True)
    start = time.monotonic()
    results = {}
    for boundary, options in (("auto", f",{SWEEP}"), ("full", ""), ("base", "")):
        code = run(boundary, options)
        if code:
            return code
        results[boundary] = newest_result(OUT / boundary)
    print(summary(results, time.monotonic() - start))
    return 0


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


def newest_result(folder: Path) -> Path:
    """The results file that was written last."""
    return max(folder.rglob("results_*.json"), key=lambda path: path.stat().st_mtime)


def summary(results: dict[str, Path], seconds: float) -> str:
    """The sweep and the three test scores, from the results files alone."""
    found = {boundary: json.loads(path.read_text()) for boundary, path in results.items()}
    record = found["auto"]["config"]["lora_drop"]["tasks"][TASK]
    layers = record["num_layers"]
    documents = len(record["doc_ids"])
    lines = [
        "",
        f"Sweep on {documents} validation documents, {record['metric']} with its standard error:",
        *(sweep_row(row, record["boundary"], layers) for row in record["sweep"]["boundaries"]),
        "",
        f"Test, {found['auto']['n-samples'][TASK]['effective']} other documents:",
        test_row(f"K = {record['boundary']} (chosen)", found["auto"]),
        test_row(f"K = {layers} (full)", found["full"]),
        test_row("K = 0 (base)", found["base"]),
        "",
        f"Adapter parameters: {record['kept_parameters']:,} kept, {record['dropped_parameters']:,} dropped.",
        "A difference smaller than the standard errors may be chance.",
        f"Results file: {results['auto']}",
    ]
    if record["figure"]:
        lines.append(f"Figure: {record['figure']}")
    lines.append(f"The three runs took {seconds / 60:.1f} minutes.")
    return "\n".join(lines)


def sweep_row(row: dict[str, Any], chosen: int, num_layers: int) -> str:
    """One boundary of the sweep with a bar, for the eye."""
    boundary = row["boundary"]
    bar = "#" * round(20 * row["score"])
    mark = "".join(text for at, text in ((num_layers, " full"), (0, " base"), (chosen, " chosen")) if at == boundary)
    return f"  K = {boundary:2d}  {row['score']:.3f} +- {row['stderr']:.3f}  {bar:20}{mark}".rstrip()


def test_row(name: str, result: dict[str, Any]) -> str:
    """The test score of one run."""
    scores = result["results"][TASK]
    return f"  {name:18}{scores[METRIC]:.3f} +- {scores[METRIC.replace(',', '_stderr,')]:.3f}"


if __name__ == "__main__":
    sys.exit(main())
