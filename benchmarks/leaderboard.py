"""Times `lora-drop leaderboard` on synthetic results files: `python benchmarks/leaderboard.py [runs] [documents]`.

Writes `runs` runs (500) of one task with `documents` logged samples each (1,000) as lm_eval does, texts included, then
runs the command with a baseline, so that every sample is read and every system tested, and prints wall time and peak
memory. Once with a 0/1 metric (McNemar), once with a continuous one (randomisation).
"""

from __future__ import annotations

import hashlib
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def digest(text: str) -> str:
    """As long as the harness's hashes."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_run(folder: Path, number: int, documents: int) -> None:
    """One results file and its samples."""
    rng = random.Random(number)
    date = f"2026-01-01T00-00-00.{number:06d}"
    skill = 0.4 + 0.2 * rng.random()
    totals = {"exact_match": 0.0, "f1": 0.0}
    with (folder / f"samples_synthetic_{date}.jsonl").open("w", encoding="utf-8") as file:
        for doc_id in range(documents):
            right = float(rng.random() < skill)
            f1 = 0.5 * right + 0.5 * rng.random()
            totals["exact_match"] += right
            totals["f1"] += f1
            prompt = f"Question {doc_id}: " + "what is to be said about it? " * 15
            sample = {
                "doc_id": doc_id,
                "doc": {"question": prompt, "answer": str(doc_id)},
                "target": str(doc_id),
                "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": {"until": ["\n"], "max_gen_toks": 64}}},
                "resps": [["an answer of some length " * 4]],
                "filtered_resps": ["an answer of some length " * 4],
                "filter": "none",
                "metrics": ["exact_match", "f1"],
                **{f"{what}_hash": digest(f"{what} {doc_id}") for what in ("doc", "prompt", "target")},
                "exact_match": right,
                "f1": f1,
            }
            file.write(json.dumps(sample) + "\n")
    results = {
        "results": {"synthetic": {f"{name},none": total / documents for name, total in totals.items()}},
        "configs": {"synthetic": {"metric_list": [{"metric": name, "aggregation": "mean"} for name in totals]}},
        "versions": {"synthetic": 1.0},
        "n-shot": {"synthetic": 0},
        "higher_is_better": {"synthetic": dict.fromkeys(totals, True)},
        "n-samples": {"synthetic": {"original": documents, "effective": documents}},
        "config": {"model": "hf", "model_args": {"pretrained": f"system-{number:03d}"}},
        "lm_eval_version": "0.4.13",
    }
    (folder / f"results_{date}.json").write_text(json.dumps(results), encoding="utf-8")


def main() -> None:
    """Write, run, print."""
    runs, documents = map(int, sys.argv[1:3]) if len(sys.argv) > 2 else (500, 1000)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for number in range(runs):
            write_run(folder, number, documents)
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{runs} runs of {documents} documents, {size / 1e6:.0f} MB")
        for metric in ("exact_match", "f1"):
            command = [
                sys.executable,
                "-m",
                "lm_eval_lora_drop.commands.main",
                "leaderboard",
                scratch,
                "--format",
                "csv",
            ]
            start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(
                [*command, "--baseline", "system-000", "--metric", metric], check=True, stdout=subprocess.PIPE
            )
            wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(f"{metric}: {wall:.1f} s, of which on the processor {cpu:.1f} s")
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(f"peak memory of the command: {peak:.0f} MB")


if __name__ == "__main__":
    main()
