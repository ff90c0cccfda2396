"""The model card of a run: a table, and `model-index` in the front matter (huggingface/hub-docs, modelcard.md). It
names adapter digest, variant, metric and interval. Makes text, sends nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from lm_eval_lora_drop.adapter.card import CardResults
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.runs import Run, Score, TaskRun
from lm_eval_lora_drop.record.schema import RunRecord, TaskRecord
from lm_eval_lora_drop.show.signature import signature
from lm_eval_lora_drop.show.verdict.answer import EvaluatedScore, TaskVerdict, answers, evaluated_score
from lm_eval_lora_drop.show.verdict.sweep_text import verdict
from lm_eval_lora_drop.text import NOTHING, decimals_for, markdown, markdown_code, number, visible

START, END = "<!-- lora-drop results -->", "<!-- /lora-drop results -->"
"""Between them stands what a later `publish` replaces in a card."""


NORMAL_95 = 1.959964
"""The 97.5 % quantile of the normal distribution."""
BOUNDS: Mapping[str, tuple[float, float]] = dict.fromkeys(
    ("acc", "acc_norm", "acc_bytes", "exact_match", "em", "contains_em", "f1", "one_word"), (0.0, 1.0)
)
"""Metrics whose smallest and largest value are certain."""


@dataclass(frozen=True)
class Dataset:
    """A task's dataset, as far as its configuration says; `id` is its name on the Hub."""

    id: str | None
    config: str | None
    split: str | None


def dataset_of(task: TaskRun) -> Dataset:
    """From `configs` in the results file: lm-eval's own fields, or those of our loader (`data.load`)."""
    config, given = task.config, task.config.get("dataset_kwargs") or {}
    split = config.get("test_split") or config.get("validation_split") or config.get("training_split")
    path, name = config.get("dataset_path"), config.get("dataset_name")
    local = given.get("data_dir") or given.get("data_files")
    if local or path in (None, "", "json", "csv", "parquet", "text", "arrow"):
        path, name = (None, None) if local else (given.get("hub"), given.get("hub_config"))
    return Dataset(*(None if part in (None, "") else str(part) for part in (path, name, split)))


def interval(metric: str, score: Score) -> tuple[float, float] | None:
    """A 95 % interval, normal around the standard error and cut at the metric's bounds.

    None without a standard error, and where it is 0: documents that all score alike do not make a score certain.
    """
    if not score.stderr:
        return None
    low, high = score.value - NORMAL_95 * score.stderr, score.value + NORMAL_95 * score.stderr
    if metric in BOUNDS and BOUNDS[metric][0] <= score.value <= BOUNDS[metric][1]:
        low, high = max(low, BOUNDS[metric][0]), min(high, BOUNDS[metric][1])
    return low, high


def model_card(run: Run, repo: str | None = None, *, task: str | None = None, card: str | None = None) -> str:
    """The model card of a run.

    Args:
        run: a run of `hf-lora-drop` with its results.
        repo: the model repository (owner/name), None if it is not known yet.
        task: this task only.
        card: the text of a model card to put the results into; None makes a new one.

    Raises:
        ArgumentError: a run of another model type, one without scores, a task it does not have, or a damaged card.
    """
    record = run.record
    if record is None or not record.tasks:
        raise ArgumentError(f"{run.path} is no run of hf-lora-drop, and only such are published. Evaluate with it.")
    if task is not None and task not in record.tasks:
        raise ArgumentError(f"--task must be a task of {run.path}, got {task}. There are: {', '.join(record.tasks)}.")
    found = _scored(run, record, task)
    if not found:
        raise ArgumentError(f"{run.path} holds no score to publish: evaluate without --predict_only.")
    name = repo or Path(record.adapter.path or "lora-adapter").name
    head, body = _split(card)
    base = record.adapter.base_model or record.base.name
    head = {"base_model": base, "library_name": "peft", **head}
    head["tags"] = list(dict.fromkeys([*(head.get("tags") or []), "lora", "lora-drop"]))
    head["model-index"] = _model_index(record, found, name)
    section = _section(run, record, found)
    if card is None:
        what = f"A LoRA adapter for {markdown_code(base)}, evaluated with the layers that the table names."
        body = f"\n# {markdown(name)}\n\n{what}\n\n{section}\n"
    elif START in body and END in body:
        before, _, rest = body.partition(START)
        body = before + section + rest.partition(END)[2]
    else:
        body = f"{body.rstrip()}\n\n{section}\n"
    return f"---\n{visible(yaml.safe_dump(head, sort_keys=False, allow_unicode=True))}---\n{body}"


def card_results(run: Run, task: str) -> CardResults | None:
    """What the card of an export says of the scores of one task; None where the run holds none (`--predict_only`)."""
    record = run.record
    found = [] if record is None else _scored(run, record, task)
    if record is None or not found:
        return None
    results = _model_index(record, found, task)[0]["results"]
    return CardResults(results, _section(run, record, found))


def origin_of(task: str, record: TaskRecord, path: Path | None) -> str:
    """Where an exported choice came from, for the card: the verdict, the task, the results file."""
    run = f", run {markdown_code(path.name)}" if path else ""
    split = (
        f", split {markdown_code(record.validation.split)} by {markdown(record.metric)}" if record.validation else ""
    )
    return f"{markdown(verdict(record))} Task {markdown_code(task)}{split}{run}."


@dataclass(frozen=True)
class _Task:
    name: str
    run: TaskRun
    record: TaskRecord
    score: EvaluatedScore
    answer: TaskVerdict


def _scored(run: Run, record: RunRecord, task: str | None) -> list[_Task]:
    said = {answer.task: answer for answer in answers(run.data, record)}
    found = []
    for name, one in record.tasks.items():
        score = evaluated_score(run.data, name, one)
        if task in (None, name) and score is not None and name in run.tasks:
            found.append(_Task(name, run.tasks[name], one, score, said[name]))
    return found


def _split(card: str | None) -> tuple[dict[str, Any], str]:
    """Front matter and body of a card."""
    if card is None:
        return {}, ""
    if not card.startswith("---\n"):
        return {}, card
    text, mark, body = card[4:].partition("\n---\n")
    try:
        head = yaml.safe_load(text) if mark else None
    except yaml.YAMLError as error:
        raise ArgumentError(
            f"the card's front matter is no YAML ({error}). Mend it, or publish without --card."
        ) from error
    if not isinstance(head, dict):
        raise ArgumentError("the card's front matter must be a mapping between two lines '---'. Mend it.")
    return head, body


def _section(run: Run, record: RunRecord, found: list[_Task]) -> str:
    rows = ["| task | kept | metric | test | 95 % interval | documents | validation |", "|---|---|---|---|---|---|---|"]
    for one in found:
        row, score = one.answer.chosen, one.score
        bounds = interval(score.metric.name, score.score)
        cells = [
            markdown(one.name),
            f"{one.record.kept.label} ({markdown_code(one.record.variant)})",
            markdown(score.metric),
            row.test,
            NOTHING if bounds is None else _bounds(score.score, bounds),
            "-" if score.documents is None else f"{score.documents:,}",
            row.validation,
        ]
        rows.append("| " + " | ".join(cells) + " |")
    verdicts = [f"- {markdown(one.name)}: {markdown(one.answer.verdict)}" for one in found]
    facts = [
        f"- Adapter: {markdown_code(record.adapter.fingerprint)}, base model {markdown_code(record.base.name)} "
        f"({markdown_code(record.base.fingerprint)}).",
        f"- Evaluated {day_of(run)} with lm-eval {markdown(run.lm_eval_version or 'of an unknown release')} and "
        f"lm-eval-lora-drop {markdown(record.version)}, {markdown(record.dtype)}.",
        *(f"- Settings of {markdown(one.name)}: `{signature(one.run)}`" for one in found),
        "- Score ± standard error. The interval is normal around lm-eval's standard error. Validation documents chose "
        "what is kept; test documents did not.",
    ]
    return "\n".join([START, "## Results", "", *rows, "", *verdicts, "", *facts, END])


def _bounds(score: Score, bounds: tuple[float, float]) -> str:
    """The interval, to the digits that its score is shown with."""
    return " to ".join(number(end, decimals_for(score.stderr, score.value)) for end in bounds)


def day_of(run: Run) -> str:
    """The day of the run, as 2026-01-31; "on an unknown day" where the file does not say."""
    seconds = run.data.get("date")
    if not isinstance(seconds, int | float):
        return "on an unknown day"
    return datetime.fromtimestamp(seconds, timezone.utc).date().isoformat()


def _model_index(record: RunRecord, found: list[_Task], name: str) -> list[dict[str, Any]]:
    from huggingface_hub.repocard_data import EvalResult, eval_results_to_model_index

    results = []
    for one in found:
        dataset, score = dataset_of(one.run), one.score
        bounds = interval(score.metric.name, score.score)
        results.append(
            EvalResult(
                task_type="text-generation",
                task_name=one.name,
                dataset_type=dataset.id or one.name,
                dataset_name=one.name,
                dataset_config=dataset.config,
                dataset_split=dataset.split,
                metric_type=score.metric.name,
                metric_name=str(score.metric),
                metric_value=score.score.value,
                metric_args={
                    "variant": one.record.variant,
                    "adapter_digest": record.adapter.fingerprint,
                    "standard_error": score.score.stderr,
                    "confidence_interval_95": None if bounds is None else list(bounds),
                    "documents": score.documents,
                    "task_version": one.run.version,
                },
            )
        )
    index: list[dict[str, Any]] = eval_results_to_model_index(name, results)
    return index
