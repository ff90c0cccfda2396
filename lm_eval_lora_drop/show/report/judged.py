"""GPT-Scores side by side: whether two may be compared at all, and how they differ over the same documents.

Judges differ in how harsh they are, so a mean over whichever judges happened to answer ranks systems by that. Means are
taken over the documents that every judge scored for every system; a system that was judged by others, under another
prompt, or on too few documents is shown in brackets with the reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lm_eval_lora_drop.judge.panel import RESERVED_NAMES
from lm_eval_lora_drop.judge.score import what_was_asked
from lm_eval_lora_drop.judge.task import METRIC, RECORD
from lm_eval_lora_drop.record.runs import TaskRun
from lm_eval_lora_drop.statistics import significance
from lm_eval_lora_drop.statistics.clusters import Codes
from lm_eval_lora_drop.statistics.crossed import crossed_mean
from lm_eval_lora_drop.text import percent

Floats = significance.Floats

COVERAGE = 0.8
"""The least share of the documents that every judge scored, for a score to be comparable."""


@dataclass
class Judgement:
    """What judges said of one system on one task. `scores` is `(judges, documents)`, percentages, NaN where none.

    `reasons` say why the score is comparable with no other one; `asked` what another must share with it.
    """

    judges: list[str]
    scores: Floats
    asked: dict[str, Any]
    coverage: float
    documents: int
    reasons: list[str] = field(default_factory=list)

    @property
    def complete(self) -> Any:
        """`(documents,)`: which documents every judge scored."""
        return ~np.isnan(self.scores).any(axis=0)

    def __str__(self) -> str:
        return f"{', '.join(self.judges) or 'unknown judges'}; {percent(self.coverage)} of {self.documents} documents"


def judged_metric(metric: str) -> bool:
    """Whether a metric is the panel's or a judge's score."""
    return metric == METRIC or (metric.startswith(f"{METRIC}_") and metric[len(METRIC) + 1 :] not in RESERVED_NAMES)


def beside_judged(metric: str) -> bool:
    """Whether a metric says something about a GPT-Score and is no score: the number of verdicts, the agreement."""
    return metric.startswith(f"{METRIC}_") and not judged_metric(metric)


def judgement(task: TaskRun, metric: str, filter_name: str) -> Judgement:
    """Of all judges for the panel's score, of one for its own."""
    metadata = task.config.get("metadata")
    details = metadata.get(RECORD) if isinstance(metadata, dict) else None
    details = details if isinstance(details, dict) else {}
    told = details.get("judges")
    told = {str(n): j for n, j in told.items() if isinstance(j, dict)} if isinstance(told, dict) else {}
    logged = task.documents.get(filter_name)
    columns = {} if logged is None else {n: v for n, v in logged.metrics.items() if judged_metric(n) and n != METRIC}
    names = list(told) or [name.removeprefix(f"{METRIC}_") for name in columns]
    if metric != METRIC:
        names = [name for name in names if f"{METRIC}_{name}" == metric]
    documents = len(logged.doc_ids) if logged else _count(details.get("items")) or task.documents_evaluated or 0
    rows = [[_number(v) for v in columns.get(f"{METRIC}_{name}", [None] * documents)] for name in names]
    scores = np.array(rows, dtype=np.float64).reshape(len(names), documents)
    asked = what_was_asked({**details, "judges": {name: told[name] for name in names if name in told}})
    served = {name: sorted(map(str, told[name].get("served_models") or ())) for name in names if name in told}
    found = Judgement(names, scores, {**asked, "served": served}, 0.0, documents)
    if logged is not None and names:
        found.coverage = float(found.complete.mean()) if documents else 0.0
    else:  # without samples the record's own counts are all there is
        counts = [_count(told[name].get("verdicts")) for name in names if name in told]
        found.coverage = min(counts, default=0) / documents if documents else 0.0
    if not told:
        found.reasons.append("no record of its judges")
    silent = [name for name, row in zip(names, scores, strict=True) if logged is not None and np.isnan(row).all()]
    if silent:
        found.reasons.append(f"no verdict of {', '.join(silent)}")
    if found.coverage < COVERAGE:
        found.reasons.append(
            f"all judges scored {percent(found.coverage)} of {documents} documents, fewer than {percent(COVERAGE)}"
        )
    return found


def differing(one: Judgement, two: Judgement) -> list[str]:
    """In what two scores differ that makes them incomparable."""
    if one.judges != two.judges and set(one.judges) != set(two.judges):
        return [f"other judges ({', '.join(one.judges)} and {', '.join(two.judges)})"]
    names = {
        "prompt_version": "prompt version",
        "rubric": "rubric",
        "samples": "number of samples",
        "judges": "models or settings of judges",
        "served": "models that answered",
    }
    return [f"other {shown}" for name, shown in names.items() if _text(one.asked[name]) != _text(two.asked[name])]


def key(found: Judgement) -> str:
    """The same for scores that are comparable."""
    return _text({**found.asked, "names": sorted(found.judges)})


def panel_means(found: Sequence[Judgement]) -> list[Floats]:
    """The panel's mean of each document of each, over the documents that all judges scored for all of them."""
    shared = np.logical_and.reduce([judged.complete for judged in found])
    return [judged.scores[:, shared].mean(axis=0) for judged in found]


def paired_test(
    one: Judgement, two: Judgement, *, clusters: Codes | None, draws: int, seed: int
) -> tuple[significance.PairedTest, Floats] | None:
    """The difference `two - one` over the documents that all judges scored for both, and it by document.

    Of several judges the interval holds for other documents and for other judges of the kind (`statistics.crossed`);
    of one for other documents alone. None below two documents.
    """
    order = [two.judges.index(name) for name in one.judges]
    shared = one.complete & two.complete
    if int(shared.sum()) < 2:
        return None
    codes = None if clusters is None else np.unique(clusters[shared], return_inverse=True)[1]
    a, b = one.scores[:, shared], two.scores[order][:, shared]
    by_document = b.mean(axis=0) - a.mean(axis=0)
    if len(a) == 1:
        return significance.mean_test(a[0], b[0], clusters=codes, draws=draws, seed=seed), by_document
    found = crossed_mean(b - a, span=100.0, clusters=codes, seed=seed)
    method = "documents and judges, two-way random effects"
    return significance.PairedTest(found.value, found.interval, found.p_value, method, len(by_document)), by_document


def sentence(names: Iterable[str], found: Sequence[Judgement], number: int | None) -> str:
    """Judges and coverage of several systems, for below a table."""
    systems = "; ".join(f"{name}: {judged}" for name, judged in zip(names, found, strict=True))
    over = (
        ""
        if number is None
        else f" Means over the {number} documents that all judges scored for every system shown without brackets."
    )
    return f"judges and coverage: {systems}.{over}"


def _number(value: Any) -> float:
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if usable else math.nan


def _count(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else 0


def _text(value: Mapping[str, Any] | Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
