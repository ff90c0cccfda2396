"""What a study writes: its report as Markdown and LaTeX from the same sections, its cells, its per-document scores.

Texts of a study are names and numbers; what comes from its file is escaped all the same, by each format's own rules.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tabulate import tabulate

from lm_eval_lora_drop.files import write_atomically
from lm_eval_lora_drop.record.plain import plain
from lm_eval_lora_drop.show.figures.claims import Bar, claims_figure
from lm_eval_lora_drop.show.figures.seeds import seeds_figure
from lm_eval_lora_drop.show.figures.style import or_warn, save_figure
from lm_eval_lora_drop.study.claims import Claim, claims
from lm_eval_lora_drop.study.config import Study
from lm_eval_lora_drop.study.evidence import Arm, arms
from lm_eval_lora_drop.study.plan import plan, read_cell
from lm_eval_lora_drop.study.sections import CLAIMS_FIGURE, SEEDS_FIGURE, Section, sections
from lm_eval_lora_drop.study.seeds import seed_curves
from lm_eval_lora_drop.text import visible

REPORT = "report"
CELLS = "study.json"
DOCUMENTS = "documents.json.gz"


def write_report(study: Study, failed: Sequence[str] = ()) -> tuple[tuple[str, ...], list[Path]]:
    """Write `report.md`, `report.tex`, the figure and the scores of all documents into the study's folder, from what
    has finished; returns the answers to "Does dropping help?" and the files.

    Args:
        study: the study.
        failed: sentences on what could not be run, for the report.

    Raises:
        ArgumentError: a results file is damaged, or two runs of a task have not evaluated the same documents.
    """
    gathered = arms(study)
    found = claims(study, gathered)
    content = sections(study, gathered, found, failed)
    written: list[Path] = []
    for stem, figure in ((CLAIMS_FIGURE, _figure(found)), (SEEDS_FIGURE, _seeds_figure(gathered))):
        if figure is not None:
            written += or_warn(partial(save_figure, figure, study.output / stem), "lora-drop study --only report")
    for name, data in (
        (f"{REPORT}.md", markdown(content).encode()),
        (f"{REPORT}.tex", latex(content).encode()),
        # No time in the header: the same scores are the same file.
        (DOCUMENTS, gzip.compress(json.dumps(documents(found), allow_nan=False).encode(), mtime=0)),
    ):
        path = study.output / name
        write_atomically(path, data)
        written.append(path)
    return content[0].paragraphs, written


def documents(found: Sequence[Claim]) -> dict[str, Any]:
    """The claims with the per-document scores that they rest on, for `python -m tools.recompute_claims`.

    `scores[i]` is one system on one metric: `values` has a list for each of `seeds`, a number or null (no value) for
    each of `doc_ids`. `claims` name two of them by position, the seeds that are compared, and the sign that makes
    larger differences better.
    """
    scores: dict[tuple[Any, ...], dict[str, Any]] = {}
    listed = []
    for claim in found:
        places = []
        for arm in (claim.ours, claim.theirs):
            key = (claim.task.name, arm.name, claim.metric, arm.seeds)
            if key not in scores:
                scores[key] = _scores(claim, arm)
            places.append(list(scores).index(key))
        sign = -1 if claim.ours.higher_is_better(claim.key[0]) is False else 1
        tested = claim.p_holm is not None
        listed.append(
            {
                "task": claim.task.name, "claim": claim.statement, "metric": claim.metric, "sign": sign,
                "systems": places, "seeds": list(claim.ours.seeds), "tested": tested,
            }
        )  # fmt: skip
    return {"claims": listed, "scores": list(scores.values())}


def _scores(claim: Claim, arm: Arm) -> dict[str, Any]:
    _, filter_name = claim.key
    values, clusters = arm.values(*claim.key), arm.clusters(filter_name)
    return {
        "task": arm.task.name, "system": arm.name, "metric": claim.metric, "seeds": list(arm.seeds),
        "doc_ids": list(arm.runs[0].documents[filter_name].doc_ids),
        "clusters": None if clusters is None else clusters.tolist(),
        "values": [[None if math.isnan(one) else one for one in row] for row in values.tolist()],
    }  # fmt: skip


def write_cells(study: Study) -> Path:
    """Write what every finished cell says about itself to one file, in the order of the plan."""
    cells = [cell for _, group in plan(study) for cell in group]
    finished = [entry for cell in cells if (entry := read_cell(study, cell)) is not None]
    file = study.output / CELLS
    write_atomically(file, json.dumps(plain(finished), indent=1) + "\n")
    return file


def _figure(found: Sequence[Claim]) -> Figure | None:
    bars = [
        Bar(
            f"{claim.task.name}: {claim.statement}",
            claim.metric,
            claim.mean.value,
            claim.mean.interval,
            claim.outcome,
            claim.mean.of_seeds,
        )
        for claim in found
        if claim.is_first and claim.p_holm is not None and all(map(math.isfinite, claim.mean.interval))
    ]
    return claims_figure(bars) if bars else None


def _seeds_figure(gathered: Sequence[Arm]) -> Figure | None:
    curves = [found for arm in gathered if (found := seed_curves(arm, gathered)) is not None]
    return seeds_figure(curves) if curves else None


def markdown(content: Sequence[Section]) -> str:
    """GitHub's Markdown; the figure is a file beside it."""
    parts = []
    for section in content:
        parts += [f"## {section.title}", *map(_escaped_markdown, section.paragraphs)]
        if section.table is not None:
            head, rows = section.table
            escaped = [[_escaped_markdown(cell).replace("|", "\\|") for cell in row] for row in rows]
            parts.append(tabulate(escaped, head, tablefmt="github", disable_numparse=True))
        if section.figure is not None:
            stem, alt = section.figure
            parts.append(f"![{alt}]({stem}.png)")
    return "\n\n".join(parts) + "\n"


def _escaped_markdown(text: str) -> str:
    """Tags would be markup; `<.001` is not."""
    return visible(text).replace("&", "&amp;").replace("<", "&lt;")


_MOST_CHARACTERS = 70
"""Of a table's line in a text 345 pt wide, at LaTeX's usual size."""


def _width(cells: Sequence[str]) -> int:
    """The share of a line that a column gets: its longest word fits, a longer text is broken."""
    words = max((len(word) for cell in cells for word in cell.split()), default=1)
    return max(words, min(28, max(map(len, cells))))


def latex(content: Sequence[Section]) -> str:
    """Tables for a paper that loads booktabs and array, each with its text as the caption.

    One that would be wider than a column of text of 345 pt is set smaller, and its cells are broken.
    """
    parts = []
    for section in content:
        if section.table is None:
            parts += [f"% {visible(line)}" for line in (section.title, *section.paragraphs)]
            continue
        head, rows = section.table
        shown = [[visible(cell) for cell in row] for row in rows]
        table = tabulate(shown, head, tablefmt="latex_booktabs", disable_numparse=True)
        columns = list(itertools.zip_longest(head, *shown, fillvalue=""))
        if sum(max(map(len, cells)) + 2 for cells in columns) > _MOST_CHARACTERS:
            widths = [_width(cells) for cells in columns]
            space = 1 - 0.02 * len(widths)
            parts_of = [f"{space * one / sum(widths):.3f}\\linewidth" for one in widths]
            shares = "".join(f">{{\\raggedright\\arraybackslash}}p{{{one}}}" for one in parts_of)
            table = table.replace(f"{{{'l' * len(widths)}}}", f"{{{shares}}}", 1)
            table = f"\\scriptsize\\setlength{{\\tabcolsep}}{{0.01\\linewidth}}\n{table}"
        caption = " ".join((f"{section.title}.", *section.paragraphs))
        escaped = tabulate([[visible(caption)]], tablefmt="latex", disable_numparse=True)
        text = escaped.split("\\hline\n")[1].strip().removesuffix("\\\\").strip()
        parts.append(f"\\begin{{table}}\n\\caption{{{text}}}\n{table}\n\\end{{table}}")
    return "\n\n".join(parts) + "\n"
