"""Records as runs write them, made up for tests: nothing here computes what the product computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.record.metric import MetricSpec
from lm_eval_lora_drop.record.schema import (
    SCHEMA,
    AdapterRecord,
    BaseRecord,
    CandidateRecord,
    DifferenceRecord,
    RunRecord,
    SweepRecord,
    TaskRecord,
    ValidationRecord,
    to_entry,
)
from lm_eval_lora_drop.variant import Variant

L = 10
METRIC = MetricSpec("rouge_l", "none", True)


def candidate(
    kept: Variant, score: float | None, stderr: float | None = 1.5, documents: int = 32, **fields: Any
) -> CandidateRecord:
    return CandidateRecord(variant=str(kept), score=score, stderr=stderr, documents=documents, **fields)


def boundaries(scores: dict[int, float | None], layers: int = L, **fields: Any) -> tuple[CandidateRecord, ...]:
    """A candidate for each K, from most kept to least."""
    return tuple(candidate(Variant.below(k, layers), score, **fields) for k, score in sorted(scores.items())[::-1])


def noisy(k: int, i: int) -> float:
    """Document i under boundary k: so uneven that 32 of them tell no two boundaries apart."""
    return 25.0 + 6 * ((i * 7 + k * k * 3) % 11 - 5)


def curve() -> tuple[CandidateRecord, ...]:
    """Eleven boundaries of ten layers with a maximum at 7; the two lowest were eliminated after eight documents."""
    return tuple(
        candidate(
            Variant.below(k, L),
            20.0 + k - 0.2 * max(0, k - 7) ** 2,
            documents=32 if k > 1 else 8,
            eliminated_after=None if k > 1 else 8,
            items=tuple(noisy(k, i) if k > 1 or i < 8 else None for i in range(32)),
        )
        for k in range(L, -1, -1)
    )


def sweep_record(
    candidates: tuple[CandidateRecord, ...] | None = None,
    *,
    chosen: Variant | int = 7,
    layers: int = L,
    gain: tuple[float | None, float | None] | None = (0.6, 0.9),
    **fields: Any,
) -> SweepRecord:
    kept = Variant.below(chosen, layers) if isinstance(chosen, int) else chosen
    settings: dict[str, Any] = {
        "candidate_set": "boundary",
        "ordered": True,
        "strategy": "exhaustive",
        "select": "best",
        "seed": 0,
        "engine": "shared",
        "aggregation": "mean",
        "best": str(kept),
        **fields,
    }
    return SweepRecord(
        candidates=curve() if candidates is None else candidates,
        chosen=str(kept),
        gain_over_full=None if gain is None else DifferenceRecord(difference=gain[0], stderr=gain[1], documents=32),
        **settings,
    )


def task_record(sweep: SweepRecord | None = None, *, layers: int = L, **fields: Any) -> TaskRecord:
    """A task whose variant a sweep found; with `variant` and `method` any other."""
    text = fields.pop("variant", sweep.chosen if sweep else str(Variant.below(7, layers)))
    settings: dict[str, Any] = {
        "boundary": Variant.parse(text, layers).boundary,
        "method": "sweep" if sweep else "given",
        "fingerprint": "sha256:task",
        "kept_parameters": 700,
        "dropped_parameters": 300,
        "metric": METRIC if sweep else None,
        "validation": ValidationRecord(split="validation", doc_ids=tuple(range(32))) if sweep else None,
        **fields,
    }
    return TaskRecord(variant=text, num_layers=layers, sweep=sweep, **settings)


def run_record(tasks: dict[str, TaskRecord], *, path: str | None = "adapters/mine", layers: int = L) -> RunRecord:
    return RunRecord(
        schema=SCHEMA,
        version="0.1.0",
        adapter=AdapterRecord(
            path=path, fingerprint="sha256:" + "ab" * 32, base_model="org/base", r=8, lora_alpha=16.0, parameters=1000
        ),
        base=BaseRecord(name="org/base", revision=None, fingerprint="sha256:" + "cd" * 32),
        dtype="float32",
        num_layers=layers,
        fingerprint="sha256:setting",
        libraries={"lm_eval": "0.4.13"},
        tasks=tasks,
    )


def results_of(record: RunRecord, *, score: float = 33.04, stderr: float | str = 2.13, **more: Any) -> dict[str, Any]:
    """The harness's results dictionary of a run with this record."""
    names = list(record.tasks)
    return {
        "results": {
            name: {
                "alias": name,
                "sample_len": 200,
                "rouge_l,none": score,
                "rouge_l_stderr,none": stderr,
                "words,none": 5,
            }
            for name in names
        },
        "configs": {
            name: {"dataset_path": "org/data", "dataset_name": "main", "test_split": "test", "metric_list": []}
            for name in names
        },
        "versions": dict.fromkeys(names, 1.0),
        "n-shot": dict.fromkeys(names, 0),
        "higher_is_better": {name: {"rouge_l": True, "words": None} for name in names},
        "n-samples": {name: {"original": 200, "effective": 200} for name in names},
        "config": {
            "model": "hf-lora-drop",
            "model_args": {"pretrained": "org/base", "peft": "adapters/mine", "boundary": "auto"},
            **to_entry(record),
        },
        "date": 1_767_225_600.0,
        "lm_eval_version": "0.4.13",
        **more,
    }


def write_results(folder: Path, results: dict[str, Any], date: str = "2026-01-01T00-00-00.000000") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"results_{date}.json"
    path.write_text(json.dumps(results), encoding="utf-8")
    return path
