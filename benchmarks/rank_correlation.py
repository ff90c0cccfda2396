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

from racing_replay import read_task
from scipy import stats

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.schema import TaskRecord
from lm_eval_lora_drop.variant import Variant


def scores(task: TaskRecord) -> dict[int, float]:
    """K -> score.

    Raises:
        ArgumentError: the record holds no sweep over boundaries.
    """
    if task.sweep is None or task.sweep.candidate_set != "boundary":
        raise ArgumentError(f"this needs a sweep over boundaries, got method={task.method!r}. Use boundary=auto.")
    found = {Variant.parse(row.variant, task.num_layers).boundary: row.score for row in task.sweep.candidates}
    return {k: score for k, score in found.items() if k is not None and score is not None}


def compare(metric: TaskRecord, reference: TaskRecord) -> dict[str, Any]:
    """The figures of two sweeps' records.

    Raises:
        ArgumentError: they are not of the same documents, or share fewer than three boundaries.
    """
    read = [one.validation.doc_ids if one.validation else () for one in (metric, reference)]
    if read[0] != read[1]:
        raise ArgumentError("The two sweeps must be over the same validation documents, and are not.")
    first, second = scores(metric), scores(reference)
    boundaries = sorted(first.keys() & second.keys())
    if len(boundaries) < 3:
        raise ArgumentError(f"The two sweeps must share three boundaries or more; they share {len(boundaries)}.")
    pairs = [first[k] for k in boundaries], [second[k] for k in boundaries]
    return {
        "documents": len(read[0]),
        "boundaries": len(boundaries),
        "metrics": [str(metric.metric), str(reference.metric)],
        "chosen": [metric.boundary, reference.boundary],
        "spearman": round(float(stats.spearmanr(*pairs).statistic), 3),
        "kendall": round(float(stats.kendalltau(*pairs).statistic), 3),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metric", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--task")
    args = parser.parse_args()
    task, metric = read_task(args.metric, args.task)
    _, reference = read_task(args.reference, task)
    print(json.dumps({"benchmark": "rank_correlation", "task": task, **compare(metric, reference)}))


if __name__ == "__main__":
    main()
