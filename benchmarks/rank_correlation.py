"""How alike two sweeps rank the boundaries, one by the task's metric and one by the reference's log-likelihood.

    lm_eval ...,boundary=auto --output_path out/metric
    lm_eval ...,boundary=auto,sweep_metric=reference_loglikelihood --output_path out/reference
    python benchmarks/rank_correlation.py out/metric/.../results_*.json out/reference/.../results_*.json [--task NAME]

Prints one JSON line with Spearman's and Kendall's rank correlation of the scores, and what each sweep chose.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from racing_replay import read_entry
from scipy import stats

from lm_eval_lora_drop.errors import ArgumentError


def compare(metric: Any, reference: Any) -> dict[str, Any]:
    """The figures of two sweeps' records.

    Raises:
        ArgumentError: they are not of the same documents, or share fewer than three boundaries.
    """
    if metric["doc_ids"] != reference["doc_ids"]:
        raise ArgumentError("The two sweeps must be over the same validation documents, and are not.")
    first, second = ({row["boundary"]: row["score"] for row in e["sweep"]["boundaries"]} for e in (metric, reference))
    boundaries = sorted(first.keys() & second.keys())
    if len(boundaries) < 3:
        raise ArgumentError(f"The two sweeps must share three boundaries or more; they share {len(boundaries)}.")
    scores = [first[k] for k in boundaries], [second[k] for k in boundaries]
    return {
        "documents": len(metric["doc_ids"]),
        "boundaries": len(boundaries),
        "metrics": [metric["metric"], reference["metric"]],
        "chosen": [metric["boundary"], reference["boundary"]],
        "spearman": round(float(stats.spearmanr(*scores).statistic), 3),
        "kendall": round(float(stats.kendalltau(*scores).statistic), 3),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metric", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--task")
    args = parser.parse_args()
    task, metric = read_entry(args.metric, args.task)
    _, reference = read_entry(args.reference, task)
    print(json.dumps({"benchmark": "rank_correlation", "task": task, **compare(metric, reference)}))


if __name__ == "__main__":
    main()
