"""All campaigns one after another, and one table: tried, failed. What was finished is not run again.

python -m tests.campaign [--folder .campaign] [--quick]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

CAMPAIGNS = {
    "judges": ("--calls", "10000", "--kills", "40"),
    "sweeps": ("--kills", "200"),
    "studies": ("--kills", "20"),
    "fuzz": ("--inputs", "100000"),
    "commands": (),
    "reports": ("--reports", "100"),
}
QUICK = {
    "judges": ("--calls", "240", "--kills", "4"),
    "sweeps": ("--kills", "8"),
    "studies": ("--kills", "3"),
    "fuzz": ("--inputs", "2000"),
}


def main() -> int:
    """Run, or go on; 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path(".campaign"))
    parser.add_argument("--quick", action="store_true", help="a small part of each, some minutes")
    args = parser.parse_args()
    rows: list[str] = []
    failed = 0
    for name, options in CAMPAIGNS.items():
        if args.quick:
            options = QUICK.get(name, ())
        folder = args.folder / (f"{name}-quick" if args.quick else name)
        said = folder / "said.txt"
        if not said.exists():
            print(f"tests.campaign.{name} {' '.join(options)}", file=sys.stderr, flush=True)
            command = [sys.executable, "-m", f"tests.campaign.{name}", *options, "--folder", str(folder)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            folder.mkdir(parents=True, exist_ok=True)
            if done.returncode == 0:  # a failed one is gone on with, and says again what failed
                said.write_text(done.stdout)
            text, failed = done.stdout, failed or done.returncode
        else:
            text = said.read_text()
        lines = text.split("\n")
        rows += [line for line in lines if line.startswith("| ") and not line.startswith("| tried |")]
        for line in lines:
            if line.startswith(("failed:", "skipped:")):
                print(f"{name} {line}")
    print("| tried | times | failed |\n|---|---|---|")
    print("\n".join(rows))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
