"""What an installation of this package costs `lm_eval` commands that name nothing of it.

    python benchmarks/stock_command.py [--runs 20] [-- ls --help]

Runs the command with and without the finder that an installation arms at interpreter start, by turns, and prints the
ratio of the median times; at most 1.05 is wanted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

STARTUP = Path(__file__).resolve().parents[1] / "lm_eval_lora_drop" / "_startup.py"
# Whatever this environment has armed is taken out on both sides.
PROGRAM = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "__name__", "") != "_LoraDropFinder"]
exec(sys.argv.pop(1))
from lm_eval.__main__ import cli_evaluate
cli_evaluate()
"""


def seconds(startup: str, words: list[str]) -> float:
    """Wall-clock time of one run of the command."""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", PROGRAM, startup, *words], capture_output=True, text=True, check=False)
    took = time.perf_counter() - begin
    if done.returncode:
        sys.exit(f"lm_eval {' '.join(words)} failed: {done.stderr[-500:]}")
    return took


def main() -> None:
    """Measure, and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="of each side")
    parser.add_argument("words", nargs="*", default=["ls", "--help"], help="the command after lm_eval")
    args = parser.parse_args()
    startup = STARTUP.read_text(encoding="utf-8")
    seconds(startup, args.words)  # reads the files into memory
    times: dict[str, list[float]] = {"without": [], "with": []}
    for number in range(args.runs):
        # By turns, and the first of a pair is each side as often.
        for side in ("without", "with") if number % 2 else ("with", "without"):
            times[side].append(seconds(startup if side == "with" else "", args.words))
    medians = {side: statistics.median(found) for side, found in times.items()}
    print(
        json.dumps(
            {
                "command": ["lm_eval", *args.words],
                "runs": args.runs,
                "seconds": {side: round(median, 3) for side, median in medians.items()},
                "ratio": round(medians["with"] / medians["without"], 3),
            }
        )
    )


if __name__ == "__main__":
    main()
