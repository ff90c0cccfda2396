"""Recomputes every claim of a study from its per-document scores alone.

    python -m tools.recompute_claims out/study/documents.json.gz [MORE.json.gz ...]

Prints, for each claim, the paired difference, its 95 % interval over documents and seeds, and the p-value corrected for
all claims of all files (Holm): with one file the table "Claims" of the study's report.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from lm_eval_lora_drop.statistics.crossed import CrossedMean
from lm_eval_lora_drop.statistics.significance import holm
from lm_eval_lora_drop.study.evidence import mean_of


def recompute(*studies: dict[str, Any]) -> list[tuple[dict[str, Any], CrossedMean, float | None]]:
    """Each claim of the files with its difference and its corrected p-value (None: both are the same full adapter)."""
    found = [(claim, _difference(claim, data["scores"])) for data in studies for claim in data["claims"]]
    adjusted = iter(holm([mean.p_value for claim, mean in found if claim["tested"]]))
    return [(claim, mean, next(adjusted) if claim["tested"] else None) for claim, mean in found]


def _difference(claim: dict[str, Any], scores: list[dict[str, Any]]) -> CrossedMean:
    first = scores[claim["systems"][0]]
    ours, theirs = (
        np.array([scores[place]["values"][scores[place]["seeds"].index(seed)] for seed in claim["seeds"]], dtype=float)
        for place in claim["systems"]
    )
    clusters = None if first["clusters"] is None else np.array(first["clusters"])
    return mean_of(claim["sign"] * (ours - theirs), clusters, ours.ravel(), theirs.ravel())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="documents.json.gz of studies")
    found = recompute(*(json.loads(gzip.decompress(file.read_bytes())) for file in parser.parse_args().files))
    rows = [
        [
            claim["task"], claim["claim"], claim["metric"], f"{mean.value:+.4f}",
            "{:+.4f} to {:+.4f}".format(*mean.interval), mean.documents, mean.seeds,
            "-" if p is None else f"{p:.3g}",
        ]
        for claim, mean, p in found
    ]  # fmt: skip
    print(tabulate(rows, ["task", "claim", "metric", "difference", "95 % interval", "documents", "seeds", "p (Holm)"]))


if __name__ == "__main__":
    main()
