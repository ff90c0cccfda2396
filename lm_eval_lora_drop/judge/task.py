"""GPT-Score as metrics of an lm-eval task, where a panel is configured; an ordinary task where none is.

A task's YAML names this class and says in its metadata what a judge has to know:

    class: !function lm_eval_lora_drop.judge.task.JudgedTask
    metadata: {version: 1.0, judge: {kind: summary, source: dialogue}}

Judges are asked in the aggregation of `gpt_score`, that is after all generations, and after these have been written
down beside the judges' cache: whatever happens to a judge costs no generation. A sweep aggregates only the
metric it optimises, so it asks no judge unless that is `gpt_score`.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import read_rows, write_atomically
from lm_eval_lora_drop.judge.cache import Cache
from lm_eval_lora_drop.judge.panel import Panel, panel_from
from lm_eval_lora_drop.judge.questions import KINDS, Rubric
from lm_eval_lora_drop.judge.score import Item, PanelScores, mean, score
from lm_eval_lora_drop.metrics.limited import LimitedTask
from lm_eval_lora_drop.text import logger

log = logger(__name__)

METRIC = "gpt_score"
RECORD = "gpt_score"
"""Where in the task's metadata, and so in the results file's `configs`, the panel's details are put."""


class JudgedTask(LimitedTask):
    """A task of the harness with `gpt_score` and its company among its metrics."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._panel: Panel | None = None
        super().__init__(config)
        metadata = self.config.metadata or {}
        # With a rubric the task is judged as any other one, at the end of the run (`rescore.judge_after_run`).
        self._panel = None if metadata.get("rubric") else panel_from(metadata)
        if self._panel is not None:
            # Before the model runs for hours: a missing key is no surprise to keep for the end.
            self._panel.check_keys()
            fields = judge_fields({"metadata": metadata})
            if fields is None:
                raise ArgumentError(f"task {self.config.task} must say in metadata.judge what a judge has to know.")
            self._fields = fields
            self._judging = Judging(str(self.config.task), self._panel, metadata)

    def process_results(self, doc: dict[str, Any], results: list[Any]) -> dict[str, Any]:
        """The task's own metrics, and items for the judges."""
        found: dict[str, Any] = super().process_results(doc, results)
        if self._panel is None or not isinstance(results[0], str):
            return found
        item = item_of(self._fields, doc, str(self.doc_to_target(doc)), results[0])
        return {**found, **self._judging.items(item)}

    @property
    def judging(self) -> Judging | None:
        """Who judges; None without a panel."""
        return None if self._panel is None else self._judging

    def aggregation(self) -> dict[str, Callable[[Sequence[Any]], float]]:
        """The task's own, and the panel's."""
        own: dict[str, Callable[[Sequence[Any]], float]] = super().aggregation()
        return own if self._panel is None else {**own, **self._judging.aggregations()}

    def higher_is_better(self) -> dict[str, bool | None]:
        """The task's own, and the panel's."""
        own: dict[str, bool | None] = super().higher_is_better()
        return own if self._panel is None else {**own, **self._judging.directions()}


def judge_fields(config: Mapping[str, Any]) -> dict[str, str] | None:
    """`metadata.judge` of a task's config, None where the task says nothing for judges.

    Raises:
        ArgumentError: it says something that no judge can be asked about.
    """
    metadata = config.get("metadata")
    fields = metadata.get("judge") if isinstance(metadata, dict) else None
    if not isinstance(fields, dict):
        return None
    if fields.get("kind") not in KINDS or not isinstance(fields.get("source"), str):
        raise ArgumentError(
            f"a task's metadata.judge must have kind ({' or '.join(KINDS)}) and source (a field of its documents); "
            f"got {str(fields)[:200]}."
        )
    return fields


def item_of(
    fields: Mapping[str, str] | Rubric | None, doc: Mapping[str, Any], reference: str, prediction: str, prompt: str = ""
) -> Item:
    """What a judge sees of a document; `fields` is `judge` of the task's metadata, or a rubric of the user's.

    Raises:
        ArgumentError: the document has no such field.
    """
    if fields is None or isinstance(fields, Rubric):
        return Item("rubric", (fields or Rubric("", "")).source_of(doc, prompt), reference.strip(), prediction.strip())
    if fields["source"] not in doc:
        raise ArgumentError(f"the document has no field {fields['source']!r}, which the task's metadata.judge names.")
    return Item(fields["kind"], str(doc[fields["source"]]), reference.strip(), prediction.strip())


class Judging:
    """One task's items on their way from `process_results` to the results file.

    An item of `gpt_score` is a list with the texts; once judged it holds the panel's percentage instead (None without
    a verdict), and that of `gpt_score_<judge>`, empty before, the judge's. The harness logs the same lists, so
    the logged samples carry every document's scores.
    """

    def __init__(self, task: str, panel: Panel, metadata: dict[str, Any]) -> None:
        self.task, self.panel, self.metadata = task, panel, metadata
        self._scores: PanelScores | None = None
        self._asked: list[Item] = []
        """All that the panel was asked about: the cap holds for all candidates of a sweep and all variants together."""

    def items(self, item: Item) -> dict[str, Any]:
        """The metrics of one document, not judged yet."""
        texts = [item.kind, item.source, item.reference, item.prediction]
        judges: dict[str, list[float | None]] = {f"{METRIC}_{judge.name}": [] for judge in self.panel.judges}
        return {
            METRIC: texts,
            f"{METRIC}_stderr": None,
            f"{METRIC}_verdicts": None,
            f"{METRIC}_agreement": None,
            **judges,
        }

    def aggregations(self) -> dict[str, Callable[[Sequence[Any]], float]]:
        """Per metric; `gpt_score` comes first among a document's metrics, and the others use what it found."""
        found: dict[str, Callable[[Sequence[Any]], float]] = {
            METRIC: _PanelMean(self),
            # The harness writes "N/A" under this very name for an aggregation that it does not know, then this.
            f"{METRIC}_stderr": lambda _: self._scores.stderr if self._scores else math.nan,
            f"{METRIC}_verdicts": lambda _: float(self._scores.verdicts) if self._scores else math.nan,
            f"{METRIC}_agreement": lambda _: self._scores.agreement if self._scores else math.nan,
        }
        for judge in self.panel.judges:
            found[f"{METRIC}_{judge.name}"] = self._of_judge(judge.name)
        return found

    def directions(self) -> dict[str, bool | None]:
        """Higher is better for scores; the rest is no quality of the model."""
        scores = [METRIC, *(f"{METRIC}_{judge.name}" for judge in self.panel.judges)]
        return {name: True if name in scores else None for name in self.aggregations()}

    def panel_mean(self, items: Sequence[list[Any]]) -> float:
        """The panel's mean as a percentage, asking the judges about whatever they have not judged yet. Never raises."""
        new = [item for item in items if len(item) > 1]
        if new:
            self._judge(new)
        return mean([item[0] for item in items if len(item) == 1])

    def scores_of(self, items: Sequence[Sequence[str]]) -> dict[str, list[float | None]]:
        """By metric, the percentages of items that are not the task's results (texts, as `items` makes them).

        One question to the panel, so that one cap holds for all of them together with what was judged before.

        Raises:
            ArgumentError: the panel cannot be asked.
        """
        scores = self._score([Item(*texts) for texts in items])
        return {METRIC: scores.per_item, **{f"{METRIC}_{name}": scores.percentages(name) for name in scores.by_judge}}

    def _score(self, items: list[Item]) -> PanelScores:
        with closing(Cache()) as cache:
            saved = save_items(cache.path.parent / "judged", self.task, items)
            log.info("%s: %d outputs to be judged are safe in %s", self.task, len(items), saved)
            scores = score(self.panel, items, cache, earlier=self._asked)
        self._asked += items
        for warning in scores.warnings():
            log.warning("%s: %s", self.task, warning)
        return scores

    def _judge(self, new: Sequence[list[Any]]) -> None:
        try:
            self._scores = self._score([Item(*texts) for texts in new])
        except Exception as error:  # noqa: BLE001  whatever a judge does, the run's other results must be written
            message = self.panel.redactor().message(f"{type(error).__name__}: {error}")
            log.error("%s: no GPT-Score (%s). `lora-drop judge rescore` can fill it in later.", self.task, message)
            self.metadata[RECORD] = {"error": message}
            return
        self.metadata[RECORD] = self._scores.to_json()
        for item, percentage in zip(new, self._scores.per_item, strict=True):
            item[:] = [percentage]

    def _of_judge(self, name: str) -> Callable[[Sequence[list[Any]]], float]:
        def aggregate(items: Sequence[list[Any]]) -> float:
            if self._scores is None:
                return math.nan
            found = self._scores.percentages(name)
            for item, value in zip(items, found, strict=False):
                item[:] = [value]
            return mean(found)

        return aggregate


class _PanelMean:
    """The aggregation of `gpt_score`, as an object, so that its printed form in a results file is a name."""

    def __init__(self, judging: Judging) -> None:
        self._judging = judging

    def __call__(self, items: Sequence[list[Any]]) -> float:
        return self._judging.panel_mean(items)

    def __repr__(self) -> str:
        return f"GPT-Score by {', '.join(judge.name for judge in self._judging.panel.judges)}"


def save_items(folder: Path, task: str, items: Sequence[Item]) -> Path:
    """Write the outputs that judges are about to see, a JSON object per line; all of them, or no file.

    Raises:
        ArgumentError: they cannot be written.
    """
    name = re.sub(r"[^\w.-]+", "-", task)[:100]
    path = folder / f"{name}_{time.strftime('%Y-%m-%dT%H-%M-%S')}_{time.time_ns() % 10**9:09d}.jsonl"
    # A file that ends between two lines would be read as one of fewer outputs.
    write_atomically(path, "".join(json.dumps(vars(item), ensure_ascii=True) + "\n" for item in items))
    return path


def read_items(path: Path) -> list[Item]:
    """What `save_items` wrote.

    Raises:
        ArgumentError: the file is none of these.
    """
    items = []
    for number, row in read_rows(path):
        texts = all(isinstance(value, str) for value in row.values())
        if set(row) != {"kind", "source", "reference", "prediction"} or not texts or row["kind"] not in KINDS:
            raise ArgumentError(
                f"{path}, line {number}: must have the texts kind ({' or '.join(KINDS)}), source, reference and "
                "prediction, and nothing else."
            )
        items.append(Item(**row))
    if not items:
        raise ArgumentError(f"{path} holds no outputs to be judged.")
    return items
