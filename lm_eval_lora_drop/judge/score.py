"""GPT-Score: each judge's score, the panel's mean as a percentage, and how far the judges agree."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from lm_eval_lora_drop.judge.ask import Ask, PanelAnswers, Verdict, ask, serves_another
from lm_eval_lora_drop.judge.cache import Cache, answer_key
from lm_eval_lora_drop.judge.cache.answers import calls_needed
from lm_eval_lora_drop.judge.cache.spending import tokens_of
from lm_eval_lora_drop.judge.panel import Judge, Panel
from lm_eval_lora_drop.judge.questions import KINDS, VERSION, Question, Rubric, score_question
from lm_eval_lora_drop.record.plain import plain


@dataclass(frozen=True)
class Item:
    """One output to be scored; `kind` is one of `questions.KINDS`, unless a rubric of the user's says what it is."""

    kind: str
    source: str
    reference: str
    prediction: str

    def question(self, judge: Judge, rubric: Rubric | None = None, sample: int = 0) -> Question:
        """What `judge` is asked about it."""
        texts = (self.source, self.reference, self.prediction)
        return score_question(rubric or KINDS[self.kind], *texts, structured=judge.structured, sample=sample)


@dataclass
class PanelScores:
    """`by_judge[name][i]` is on the rubric's scale, or None where that judge gave item i no verdict."""

    by_judge: dict[str, list[float | None]]
    answers: PanelAnswers
    panel: Panel
    rubric: Rubric

    def percentages(self, judge: str) -> list[float | None]:
        """A judge's scores as percentages."""
        return [None if score is None else self.rubric.percent(score) for score in self.by_judge[judge]]

    @property
    def per_item(self) -> list[float | None]:
        """The panel's mean of each item as a percentage, over the items that every judge scored.

        A judge that is harsher than the others must not count on some items only. One that scored nothing at all is
        left out here; its silence is in `coverage`.
        """
        every = [self.percentages(judge) for judge in self.by_judge]
        columns = [column for column in every if any(value is not None for value in column)]
        if not columns:
            return [None] * len(every[0])
        return [None if None in row else _mean([v for v in row if v is not None]) for row in zip(*columns, strict=True)]

    @property
    def mean(self) -> float:
        """The panel's mean over the items with a verdict, a percentage; NaN where none has one."""
        return mean(self.per_item)

    @property
    def stderr(self) -> float:
        """Standard error of `mean` over items; NaN below two."""
        return stderr(self.per_item)

    @property
    def verdicts(self) -> int:
        """How many verdicts there are, all judges together."""
        return sum(score is not None for scores in self.by_judge.values() for score in scores)

    @property
    def coverage(self) -> float:
        """The share of the verdicts asked for that there are."""
        asked = len(self.by_judge) * len(self.per_item)
        return self.verdicts / asked if asked else 0.0

    @property
    def agreement(self) -> float:
        """Krippendorff's alpha (interval) between the judges; NaN where it is not defined."""
        return agreement(list(self.by_judge.values()))

    def to_json(self) -> dict[str, Any]:
        """What a results file tells about the panel: who judged, what each said, what was missing."""
        judges = {}
        for judge in self.panel.judges:
            verdicts = self.answers.verdicts[judge.name]
            # Of the scores: a refusal may come from another model, and moves no score.
            served = Counter(v.served_model for v in verdicts if v.served_model and v.value is not None)
            others = sorted(model for model in served if serves_another(judge.model, model))
            judges[judge.name] = {
                **judge.identity,
                "mean": plain(mean(self.percentages(judge.name))),
                "verdicts": sum(verdict.value is not None for verdict in verdicts),
                "without_verdict": dict(Counter(v.reason for v in verdicts if v.value is None)),
                "served_models": dict(served),
                "served_another_model": others,
            }
        bill = self.answers.bill
        return {
            "prompt_version": VERSION,
            "rubric": self.rubric.to_json(),
            "samples": self.panel.samples,
            "mean": plain(self.mean),
            "stderr": plain(self.stderr),
            "items": len(self.per_item),
            "verdicts": self.verdicts,
            "complete_items": sum(value is not None for value in self.per_item),
            "coverage": self.coverage,
            "agreement": plain(self.agreement),
            "agreement_is": "Krippendorff's alpha, interval",
            "judges": judges,
            "calls": bill.calls,
            "calls_before": bill.calls_before,
            "dollars": round(bill.dollars_in_all, 6),
            "dollars_of_this_run": round(bill.dollars, 6),
            "stopped_by_cap": bill.capped,
            "warnings": self.warnings(),
        }

    def warnings(self) -> list[str]:
        """What a reader of the score must know, whole sentences."""
        said = []
        for judge in self.panel.judges:
            verdicts = self.answers.verdicts[judge.name]
            others = {v.served_model for v in verdicts if serves_another(judge.model, v.served_model)}
            if others:
                said.append(
                    f"judge {judge.name}: asked for {judge.model}, answered by {', '.join(sorted(map(str, others)))}."
                )
            without = Counter(verdict.reason for verdict in verdicts if verdict.value is None)
            if without:
                reasons = "; ".join(f"{times} times: {reason}" for reason, times in without.most_common(3))
                said.append(
                    f"judge {judge.name}: no verdict on {sum(without.values())} of {len(verdicts)} ({reasons})."
                )
        return said


def score(
    panel: Panel,
    items: Sequence[Item],
    cache: Cache,
    *,
    offline: bool = False,
    rubric: Rubric | None = None,
    earlier: Sequence[Item] = (),
) -> PanelScores:
    """Have every judge score every item, all of one kind; what `earlier` ones cost counts for the cap.

    Raises ArgumentError before the first call, nothing after.
    """
    rubric = rubric_of(panel, items, rubric)

    def asked(some: Sequence[Item]) -> Ask:
        return lambda judge: questions(judge, panel, some, rubric)

    answers = ask(panel, asked(items), cache, offline=offline, earlier=asked(earlier))
    answers.verdicts = {name: averaged(found, panel.samples) for name, found in answers.verdicts.items()}
    by_judge = {name: [v.value for v in verdicts] for name, verdicts in answers.verdicts.items()}
    return PanelScores(by_judge, answers, panel, rubric)


def rubric_of(panel: Panel, items: Sequence[Any], rubric: Rubric | None) -> Rubric:
    """The rubric given, or that of the kind of the items or pairs; with the panel's criteria unless it has its own."""
    rubric = rubric or KINDS[items[0].kind if items else "summary"]
    return rubric if rubric.criteria else replace(rubric, criteria=panel.criteria)


def questions(judge: Judge, panel: Panel, items: Sequence[Item], rubric: Rubric) -> list[Question]:
    """As many for each item as the panel takes samples."""
    return [item.question(judge, rubric, sample) for item in items for sample in range(panel.samples)]


def what_was_asked(details: Mapping[str, Any]) -> dict[str, Any]:
    """What two of `PanelScores.to_json` must share to be comparable: the prompt and each judge's settings.

    Not where a server stands: a server of one's own has another address each day. Nor `max_tokens`, which decides
    whether there is a verdict and not which.
    """
    judges = details.get("judges")
    return {
        **{name: details.get(name) for name in ("prompt_version", "rubric", "samples")},
        "judges": {
            name: {key: judge.get(key) for key in ("provider", "model", "options", "structured")}
            for name, judge in (judges if isinstance(judges, dict) else {}).items()
            if isinstance(judge, dict)
        },
    }


def averaged(verdicts: list[Verdict], samples: int) -> list[Verdict]:
    """One verdict for each item: the mean of the samples that have one."""
    if samples == 1:
        return verdicts
    found = []
    for start in range(0, len(verdicts), samples):
        some = verdicts[start : start + samples]
        value = _mean([verdict.value for verdict in some if verdict.value is not None])
        reason = next((verdict.reason for verdict in some if verdict.value is None), "") if value is None else ""
        served = next((verdict.served_model for verdict in some if verdict.served_model), None)
        found.append(Verdict(value, reason, served))
    return found


@dataclass(frozen=True)
class Estimate:
    """What asking one judge would take; `dollars` is None where its price is unknown."""

    judge: Judge
    calls: int
    cached: int
    input_tokens: int
    most_output_tokens: int
    dollars: float | None


def estimate(panel: Panel, questions: Mapping[str, Sequence[Question]], cache: Cache) -> list[Estimate]:
    """Calls, tokens and money per judge, at most, retries aside; answers in the cache that can be read are free."""
    found = []
    for judge in panel.judges:
        new = {answer_key(judge, question): question for question in questions[judge.name]}
        missing = [asked for question in new.values() for asked in calls_needed(cache, judge, question)]
        read, wrote = sum(tokens_of(question.prompt) for question in missing), len(missing) * judge.max_tokens
        cost = 0.0 if judge.provider == "hf" else judge.price.cost(read, wrote) if judge.price else None
        found.append(Estimate(judge, len(missing), len(questions[judge.name]) - len(missing), read, wrote, cost))
    return found


def mean(values: Sequence[float | None]) -> float:
    """Over those that are not None; NaN where none is left."""
    found = _mean([value for value in values if value is not None])
    return math.nan if found is None else found


def stderr(values: Sequence[float | None]) -> float:
    """Standard error of `mean`; NaN below two values."""
    there = [value for value in values if value is not None]
    return float(np.std(there, ddof=1) / math.sqrt(len(there))) if len(there) > 1 else math.nan


def agreement(raters: Sequence[Sequence[float | None]], level: Literal["interval", "nominal"] = "interval") -> float:
    """Krippendorff's alpha of `raters` (one row each, None where one gave nothing); NaN where it is not defined."""
    try:
        import krippendorff
    except ImportError:
        return math.nan
    table = np.array([[math.nan if value is None else value for value in row] for row in raters], dtype=np.float64)
    table = table[:, (~np.isnan(table)).sum(axis=0) >= 2] if table.size else table
    # Without two raters on one item, or without two different values, there is nothing to agree on.
    if table.shape[0] < 2 or table.size == 0 or len(set(table[~np.isnan(table)].tolist())) < 2:
        return math.nan
    return float(krippendorff.alpha(reliability_data=table, level_of_measurement=level))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
