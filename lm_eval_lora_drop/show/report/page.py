"""`lora-drop report DIR -o report.html`: one page that holds everything and opens without a network.

Text of models and tasks is shown, never run: Jinja2 escapes it, and the page's own policy admits no script but the one
whose hash it names, no request, no form.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from lm_eval_lora_drop import __version__
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.runs import Issue, Sample
from lm_eval_lora_drop.record.schema import TaskRecord
from lm_eval_lora_drop.show.figures.candidates import figure_of
from lm_eval_lora_drop.show.figures.style import data_uri
from lm_eval_lora_drop.show.figures.trade import trade_figure
from lm_eval_lora_drop.show.report.compare import compare
from lm_eval_lora_drop.show.report.comparison import MetricComparison, SystemComparison, error_sentences
from lm_eval_lora_drop.show.report.headlines import HEADINGS, headlines
from lm_eval_lora_drop.show.report.judged import judged_metric
from lm_eval_lora_drop.show.report.leaderboard import build, find_system
from lm_eval_lora_drop.show.report.leaderboard_text import legend, to_html
from lm_eval_lora_drop.show.report.outputs import marked
from lm_eval_lora_drop.show.report.systems import System, from_paths
from lm_eval_lora_drop.show.verdict.stability import assess, sentences, swept_tasks
from lm_eval_lora_drop.show.verdict.sweep_text import sweep_decimals
from lm_eval_lora_drop.show.verdict.trade_text import trade_table
from lm_eval_lora_drop.statistics import significance
from lm_eval_lora_drop.text import number, significant, visible
from lm_eval_lora_drop.variant import Variant

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass
class OutputPair:
    """Outputs of two systems on a task, side by side."""

    task: str
    baseline: str
    other: str
    metric: str | None
    documents: list[dict[str, Any]]
    total: int


@dataclass
class SearchSection:
    """How a task's boundary was found in one run: the figure, what is traded for other tasks (`sweep_also`), the
    choice's stability in words."""

    task: str
    system: str
    record: TaskRecord
    figure: str = ""
    """A data URI, as `trade`."""
    trade: str = ""
    trade_table: str = ""
    stability: list[str] = field(default_factory=list)

    @property
    def scores(self) -> tuple[list[str], list[list[str]]]:
        """Headings and rows of every candidate."""
        assert self.record.sweep is not None
        decimals = sweep_decimals(self.record.sweep)
        return ["kept", "score", "standard error", "documents"], [
            [
                Variant.parse(row.variant, self.record.num_layers).label,
                number(row.score, decimals),
                number(row.stderr, decimals),
                str(row.documents),
            ]
            for row in self.record.sweep.candidates
        ]


def write_report(
    paths: Sequence[Path],
    *,
    baseline: str | None = None,
    title: str = "Which layers does the adapter need?",
    documents: int = 50,
    seed: int = 0,
    state: str | None = None,
) -> tuple[str, list[Issue]]:
    """The page of everything below `paths`, and what was wrong with the files.

    Args:
        paths: folders or results files.
        baseline: (part of) the name of the system the others are compared with; else the full adapter, if it is there.
        title: of the page.
        documents: how many documents to show side by side for each pair of systems and task.
        seed: of the resampling.
        state: of the folder, for a page that is served: it asks its server for the state and loads again when that is
            another (`commands/view.py`). Without one the page makes no request.

    Raises:
        ArgumentError: nothing readable, an unknown baseline.
    """

    def page(systems: Sequence[System], issues: list[Issue]) -> tuple[str, list[Issue]]:
        bases = [find_system(systems, baseline)] if baseline is not None else _full_first(systems)
        table = build(systems, issues, baseline=bases[0].label, seed=seed)
        comparisons, refused = _compare_all(systems, bases, seed)
        shown = render(
            "report.html.j2",
            state=state,
            title=title,
            headlines=headlines(systems, comparisons),
            headings=HEADINGS,
            leaderboard=Markup(to_html(table)),  # noqa: S704 - escaped by its own template
            legend=legend(table),
            comparisons=comparisons,
            searches=_searches(systems, seed),
            pairs=_pairs(systems, comparisons, documents),
            systems=systems,
            notes=[*table.notes, *refused, *map(str, table.issues)],
        )
        return shown, table.issues

    return from_paths(paths, page)


def render(template: str, *, state: str | None, **shown: Any) -> str:
    """A page made from one of our templates, with our style and script and a policy that admits nothing else."""
    script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    style = (_TEMPLATES / "report.css").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(significant=significant, error_sentences=error_sentences)
    # What a run says may not reorder what the page says (bidirectional overrides).
    page = environment.get_template(template).render(
        version=__version__,
        state=state,
        script=Markup(script),  # noqa: S704 - our own files, nothing of a run is in them
        style=Markup(style),  # noqa: S704
        script_hash=_digest(script),
        style_hash=_digest(style),
        **shown,
    )
    return visible(page)


def _full_first(systems: Sequence[System]) -> list[System]:
    """Full adapters first; each system is compared with the first of these that shares a task with it."""
    full = [s for s in systems if s.label.split(" (")[0].endswith("boundary=full")]
    stock = [s for s in systems if s.runs[0].record is None and "peft" in s.runs[0].model_args]
    return [*full, *stock, *(system for system in systems if system not in full and system not in stock)]


def _compare_all(
    systems: Sequence[System], bases: Sequence[System], seed: int
) -> tuple[list[SystemComparison], list[str]]:
    found, refused = [], []
    for other in systems:
        base = next((base for base in bases if not base.tasks.keys().isdisjoint(other.tasks)), bases[0])
        if other is base:
            continue
        try:
            found.append(compare([base, other], seed=seed, show=0))
        except ArgumentError as error:
            refused.append(f"{other.label} is not compared: {error}")
    # Over the whole page; within a pair `compare` has corrected already.
    rows = [row for comparison in found for task in comparison.tasks for row in task.metrics if row.p_holm is not None]
    for row, adjusted in zip(rows, significance.holm([row.p_value or 0.0 for row in rows]), strict=True):
        row.p_table = adjusted
    return found, refused


def _searches(systems: Sequence[System], seed: int) -> list[SearchSection]:
    found = []
    for system in systems:
        for run in system.runs:
            for task, record in swept_tasks(run).items():
                search = SearchSection(task, system.label, record)
                try:
                    search.figure = data_uri(figure_of(task, record, run.record))
                    if record.also:
                        search.trade = data_uri(trade_figure(task, record))
                        search.trade_table = trade_table(record)
                    # The verdict, first of them, is at the head of the page.
                    search.stability = sentences(assess(task, record, seed=seed))[1:]
                except ArgumentError as error:
                    search.stability = [f"Not assessed: {error}"]
                found.append(search)
    return found


def _pairs(systems: Sequence[System], comparisons: Sequence[SystemComparison], limit: int) -> list[OutputPair]:
    by_label = {system.label: system for system in systems}
    pairs = []
    for found in comparisons:
        base, other = by_label[found.baseline], by_label[found.others[0]]
        for task in found.tasks:
            one, two = base.tasks[task.task], other.tasks[task.task]
            row = next((r for r in task.metrics if r.gained is not None and not judged_metric(r.metric)), None)
            name = row.filter if row is not None else None
            # Without logged samples, or with others in one run than in the other, there is nothing to set side by side.
            left, right = one.samples(name), two.samples(name)
            if [sample.doc_id for sample in left] != [sample.doc_id for sample in right]:
                continue
            documents = [(_gain(row, a, b), a, b) for a, b in zip(left, right, strict=True)]
            # The largest changes first, in either direction: they are what one wants to read.
            documents.sort(key=lambda entry: (-abs(entry[0]), entry[1].doc_id))
            shown = [_document(gain, a, b, row.metric if row else None) for gain, a, b in documents[:limit]]
            if shown:
                metric = row.metric if row else None
                pairs.append(OutputPair(task.task, base.label, other.label, metric, shown, len(documents)))
    return pairs


def _gain(row: MetricComparison | None, a: Sample, b: Sample) -> float:
    """How much better the second scores on a document; 0 where one has no value."""
    before, after = (None if row is None else sample.metrics[row.metric] for sample in (a, b))
    if row is None or before is None or after is None:
        return 0.0
    return (float(after) - float(before)) * (-1.0 if row.higher_is_better is False else 1.0)


def _document(gain: float, a: Sample, b: Sample, metric: str | None) -> dict[str, Any]:
    left, right = marked(a.raw, b.raw)
    return {
        "doc_id": a.doc_id,
        "kind": "better" if gain > 0 else "worse" if gain < 0 else "same",
        "prompt": a.prompt,
        "target": a.target,
        "left": left,
        "right": right,
        "left_score": a.metrics.get(metric) if metric else None,
        "right_score": b.metrics.get(metric) if metric else None,
    }


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
