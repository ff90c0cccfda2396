"""A run as a record of Every Eval Ever.

Schema: evaleval/every_eval_ever, every_eval_ever/schemas/eval.schema.json, version 0.3.0.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from lm_eval_lora_drop.record.runs import Run, Score, TaskRun
from lm_eval_lora_drop.record.schema import RunRecord, TaskRecord
from lm_eval_lora_drop.show.publishing.common import BOUNDS, Publisher, dataset_of, interval, texts

SCHEMA_VERSION = "0.3.0"
_NAMESPACE = uuid.UUID("7d1c61d8-6b0a-4a0e-9a5e-1f0b8c1d2e3f")


@dataclass(frozen=True)
class Evaluation:
    """The record, and the name of its file: an identifier that is the same for the same run."""

    file: str
    data: dict[str, Any]


def evaluation_record(run: Run, record: RunRecord, tasks: Mapping[str, TaskRecord], publisher: Publisher) -> Evaluation:
    """One record with every score of `tasks`; metrics without a direction (`words`) are no scores and are left out."""
    seconds = run.data.get("date")
    model = publisher.model_name(record)
    results = [
        _result(record, one, run.tasks[name], metric, filter_name, better, score)
        for name, one in tasks.items()
        for (metric, filter_name), score in run.tasks[name].scores.items()
        if (better := run.tasks[name].higher_is_better.get(metric)) is not None
    ]
    variants = "+".join(sorted({one.variant for one in tasks.values()}))
    data: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": f"{'+'.join(tasks)}/{model}/{int(publisher.now)}",
        "retrieved_timestamp": str(int(publisher.now)),
        "source_metadata": {
            "source_name": "lm-eval-lora-drop",
            "source_type": "evaluation_run",
            "source_organization_name": publisher.organization,
            "evaluator_relationship": publisher.relationship,
        },
        "eval_library": {
            "name": "lm_eval",
            "version": run.lm_eval_version or "unknown",
            "additional_details": texts({"lm-eval-lora-drop": record.version, **record.libraries}),
        },
        "model_info": {
            "name": f"{model} ({variants})",
            "id": model,
            "inference_engine": _engine(run, record),
            "additional_details": {
                "deployment_type": "self_deployed",
                "model_availability": "open_weights" if publisher.repo else "unknown",
                **texts(
                    {
                        "adapter_digest": record.adapter.fingerprint,
                        "adapter_rank": record.adapter.r,
                        "base_model": record.base.name,
                        "base_model_digest": record.base.fingerprint,
                        "base_model_revision": record.base.revision,
                        "dtype": record.dtype,
                    }
                ),
            },
        },
        "evaluation_results": results,
    }
    if isinstance(seconds, int | float):
        data["evaluation_timestamp"] = datetime.fromtimestamp(seconds, timezone.utc).isoformat()
    identity = f"{record.fingerprint} {variants} {sorted(tasks)} {seconds}"
    return Evaluation(str(uuid.uuid5(_NAMESPACE, identity)), data)


def _engine(run: Run, record: RunRecord) -> dict[str, str]:
    name = "vllm" if run.model_type.startswith("vllm") else "transformers"
    return {"name": name, **texts({"version": record.libraries.get(name)})}


def _result(
    record: RunRecord,
    kept: TaskRecord,
    task: TaskRun,
    metric: str,
    filter_name: str,
    better: bool,
    score: Score,
) -> dict[str, Any]:
    counts = (task.run.data.get("n-samples") or {}).get(task.name) or {}
    documents = counts.get("effective")
    config: dict[str, Any] = {
        "metric_id": metric,
        "metric_name": metric if filter_name == "none" else f"{metric},{filter_name}",
        "lower_is_better": not better,
        "additional_details": texts({"filter": filter_name, "aggregation": task.aggregations.get(metric)}),
    }
    if metric in BOUNDS:
        config |= {"score_type": "continuous", "min_score": BOUNDS[metric][0], "max_score": BOUNDS[metric][1]}
    uncertainty: dict[str, Any] = {}
    bounds = interval(metric, score)
    if score.stderr is not None and bounds is not None:
        uncertainty["standard_error"] = {"value": score.stderr, "method": "lm_eval"}
        uncertainty["confidence_interval"] = {
            "lower": bounds[0],
            "upper": bounds[1],
            "confidence_level": 0.95,
            "method": "normal, from the standard error",
        }
    if isinstance(documents, int):
        uncertainty["num_samples"] = documents
    return {
        "evaluation_result_id": f"{task.name}/{metric}/{filter_name}",
        "evaluation_name": task.name,
        "source_data": _source(task, documents),
        "metric_config": config,
        "score_details": {
            "score": score.value,
            "details": texts(
                {
                    "variant": kept.variant,
                    "boundary": kept.boundary,
                    "decoder_layers": kept.num_layers,
                    "chosen_by": kept.method,
                    "chosen_on_split": kept.validation.split if kept.validation else None,
                    "chosen_on_documents": len(kept.validation.doc_ids) if kept.validation else None,
                    "kept_parameters": kept.kept_parameters,
                    "dropped_parameters": kept.dropped_parameters,
                    "adapter_digest": record.adapter.fingerprint,
                }
            ),
            **({"uncertainty": uncertainty} if uncertainty else {}),
        },
        "generation_config": _generation(task),
    }


def _source(task: TaskRun, documents: Any) -> dict[str, Any]:
    dataset = dataset_of(task)
    if dataset.id is None:
        return {"dataset_name": task.name, "source_type": "other"}
    source: dict[str, Any] = {"dataset_name": task.name, "source_type": "hf_dataset", "hf_repo": dataset.id}
    if dataset.split is not None:
        source["hf_split"] = dataset.split
    if isinstance(documents, int):
        source["samples_number"] = documents
    source["additional_details"] = texts({"config": dataset.config, "revision": dataset.revision})
    return source


def _generation(task: TaskRun) -> dict[str, Any]:
    given = task.config.get("generation_kwargs")
    given = given if isinstance(given, dict) else {}
    arguments: dict[str, Any] = {}
    temperature, most = given.get("temperature"), given.get("max_gen_toks")
    if isinstance(temperature, int | float) and not isinstance(temperature, bool):
        arguments["temperature"] = temperature
    if isinstance(most, int) and not isinstance(most, bool) and most >= 1:
        arguments["max_tokens"] = most
    details = texts({"num_fewshot": task.num_fewshot, "task_version": task.version or None})
    return {"generation_args": arguments, "additional_details": details}
