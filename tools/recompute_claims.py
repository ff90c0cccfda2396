"""Recomputes every claim of a study from its per-document scores alone.

    python -m tools.recompute_claims out/study/documents.json.gz

Prints, for each claim, the paired difference, its 95 % interval over documents and seeds, and the p-value corrected for
all claims (Holm): the table "Claims" of the study's report.
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


def recompute(data: dict[str, Any]) -> list[tuple[dict[str, Any], CrossedMean, float | None]]:
    """Each claim of the file with its difference and its corrected p-value (None: both are the same full adapter)."""
    means = [_difference(claim, data["scores"]) for claim in data["claims"]]
    tested = [claim["tested"] for claim in data["claims"]]
    adjusted = iter(holm([mean.p_value for mean, one in zip(means, tested, strict=True) if one]))
    return [
        (claim, mean, next(adjusted) if one else None)
        for claim, mean, one in zip(data["claims"], means, tested, strict=True)
    ]


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
    parser.add_argument("file", type=Path, help="documents.json.gz of a study")
    found = recompute(json.loads(gzip.decompress(parser.parse_args().file.read_bytes())))
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
