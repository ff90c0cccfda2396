"""A study's report as Markdown, HTML and LaTeX, from the same sections.

Texts of a study are names and numbers; what comes from its file is escaped all the same, by each format's own rules.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from tabulate import tabulate

from lm_eval_lora_drop.files import write_atomically
from lm_eval_lora_drop.show.figures.claims import Bar, claims_figure
from lm_eval_lora_drop.show.figures.style import image_element, or_warn, save_figure
from lm_eval_lora_drop.study.claims import Claim, claims
from lm_eval_lora_drop.study.config import Study
from lm_eval_lora_drop.study.evidence import arms
from lm_eval_lora_drop.study.sections import CLAIMS_FIGURE, Section, is_finite, sections
from lm_eval_lora_drop.text import visible

STEM = "report"
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
div { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .7rem; border-bottom: 1px solid #8884; vertical-align: top; }
img { background: white; }
"""


def write_report(study: Study, failed: Sequence[str] = ()) -> list[Path]:
    """Write `report.md`, `report.html`, `report.tex` and the figure into the study's folder, from what has finished.

    Args:
        study: the study.
        failed: sentences on what could not be run; they stand in the report.

    Raises:
        ArgumentError: a results file is damaged, or two runs of a task have not evaluated the same documents.
    """
    gathered = arms(study)
    found = claims(study, gathered)
    content = sections(study, gathered, found, failed)
    figure = _figure(found)
    written = [] if figure is None else or_warn(lambda: save_figure(figure, study.output / CLAIMS_FIGURE))
    for suffix, text in (
        ("md", markdown(content)),
        ("html", page(content, figure)),
        ("tex", latex(content)),
    ):
        path = study.output / f"{STEM}.{suffix}"
        write_atomically(path, text)
        written.append(path)
    return written


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
        if is_finite(claim)
    ]
    return claims_figure(bars) if bars else None


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


def page(content: Sequence[Section], figure: Figure | None) -> str:
    """One HTML page that holds its figure and loads nothing."""
    parts = []
    for section in content:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        parts += [f"<p>{html.escape(visible(paragraph))}</p>" for paragraph in section.paragraphs]
        if section.table is not None:
            head, rows = section.table
            shown = [[visible(cell) for cell in row] for row in rows]
            table = tabulate(shown, head, tablefmt="html", disable_numparse=True)
            parts.append(f'<div tabindex="0" role="region" aria-label="{html.escape(section.title)}">{table}</div>')
        if section.figure is not None and figure is not None:
            parts.append(image_element(figure, section.figure[1]))
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Study</title>\n<style>{_STYLE}</style></head>\n<body><main><h1>Study</h1>\n{body}\n</main></body></html>\n"
    )


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
