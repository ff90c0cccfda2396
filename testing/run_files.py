"""Runs as lm_eval writes them, made up for tests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.record.metric import MetricSpec
from lm_eval_lora_drop.record.schema import (
    KEY,
    SCHEMA,
    AdapterRecord,
    BaseRecord,
    CandidateRecord,
    RunRecord,
    SweepRecord,
    TaskRecord,
    ValidationRecord,
    as_json,
)
from lm_eval_lora_drop.variant import Variant


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_run(
    folder: Path,
    values: dict[str, list[Any]],
    *,
    name: str = "system",
    task: str = "t",
    date: str = "2026-01-01T00-00-00.000000",
    outputs: list[str] | None = None,
    targets: list[str] | None = None,
    aggregation: dict[str, str] | None = None,
    scores: dict[str, float] | None = None,
    higher: dict[str, bool | None] | None = None,
    version: float = 1.0,
    prompt: str = "prompt",
    lora_drop: dict[str, Any] | None = None,
    release: str = "0.4.13",
    samples: bool = True,
    docs: list[dict[str, Any]] | None = None,
    metadata: dict[str, Any] | None = None,
) -> Path:
    """One results file with one task, and its samples; per-document `values` by metric. Returns the results file."""
    folder.mkdir(parents=True, exist_ok=True)
    count = len(next(iter(values.values())))
    outputs = outputs or [f"output {i} of {name}" for i in range(count)]
    targets = targets or [f"target {i}" for i in range(count)]
    scores = scores or {metric: sum(map(float, items)) / count for metric, items in values.items()}
    if samples:
        with (folder / f"samples_{task}_{date}.jsonl").open("w") as file:
            for i in range(count):
                row = {
                    "doc_id": i,
                    "doc": docs[i] if docs else {"question": f"question {i}"},
                    "target": targets[i],
                    "arguments": {"gen_args_0": {"arg_0": f"{prompt} {i}", "arg_1": {"until": []}}},
                    "resps": [[outputs[i]]],
                    "filtered_resps": [outputs[i]],
                    "filter": "none",
                    "metrics": list(values),
                    "doc_hash": digest(f"doc {i}"),
                    "prompt_hash": digest(f"{prompt} {i}"),
                    "target_hash": digest(targets[i]),
                    **{metric: items[i] for metric, items in values.items()},
                }
                file.write(json.dumps(row) + "\n")
    aggregation = aggregation or {}
    metric_list = [{"metric": metric, "aggregation": aggregation.get(metric, "mean")} for metric in values]
    config: dict[str, Any] = {"model": "hf", "model_args": {"pretrained": f"models/{name}"}}
    if lora_drop is not None:
        config = {
            "model": "hf-lora-drop",
            "model_args": {"pretrained": "base", "peft": f"adapters/{name}", "boundary": "auto"},
            KEY: lora_drop,
        }
    results = {
        "results": {task: {"alias": task, **{f"{m},none": s for m, s in scores.items()}}},
        "configs": {task: {"metric_list": metric_list, "metadata": metadata or {}}},
        "versions": {task: version},
        "n-shot": {task: 0},
        "higher_is_better": {task: {metric: (higher or {}).get(metric, True) for metric in values}},
        "n-samples": {task: {"original": count, "effective": count}},
        "config": config,
        "lm_eval_version": release,
    }
    path = folder / f"results_{date}.json"
    path.write_text(json.dumps(results))
    return path


def swept(task: str = "t", documents: int = 40) -> dict[str, Any]:
    """Our entry of a run whose boundary 3 of 4 was found by a sweep."""
    right = {4: 20, 3: 26, 2: 15, 1: 9, 0: 2}
    record = TaskRecord(
        variant="0-2",
        boundary=3,
        num_layers=4,
        method="sweep",
        fingerprint="sha256:task",
        kept_parameters=300,
        dropped_parameters=100,
        metric=MetricSpec("exact_match", "none", higher_is_better=True),
        validation=ValidationRecord(split="validation", doc_ids=tuple(range(documents))),
        sweep=SweepRecord(
            candidate_set="boundary",
            ordered=True,
            strategy="exhaustive",
            select="best",
            seed=0,
            engine="shared",
            aggregation="mean",
            seconds_per_pair=0.005,
            candidates=tuple(
                CandidateRecord(
                    variant=str(Variant.below(k, 4)),
                    score=n / documents,
                    stderr=0.07,
                    documents=documents,
                    items=tuple(float((i * 7) % documents < n) for i in range(documents)),
                )
                for k, n in right.items()
            ),
            chosen="0-2",
            best="0-2",
        ),
        seconds=1.0,
    )
    run = RunRecord(
        schema=SCHEMA,
        version="0.1.0",
        adapter=AdapterRecord(
            path="adapters/x",
            fingerprint="sha256:adapter",
            base_model="base",
            r=4,
            lora_alpha=8,
            parameters=400,
        ),
        base=BaseRecord(name="base", revision="main", fingerprint="sha256:base"),
        dtype="float32",
        num_layers=4,
        fingerprint="sha256:setting",
        libraries={"lm_eval": "0.4.13"},
        tasks={task: record},
    )
    entry: dict[str, Any] = as_json(run)
    return entry
