"""A leaderboard in the formats that people paste: terminal, Markdown, LaTeX (booktabs), CSV, HTML."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable

import jinja2
from tabulate import tabulate

from lm_eval_lora_drop.show.report.leaderboard import Leaderboard, ScoreCell
from lm_eval_lora_drop.show.tables import table as aligned
from lm_eval_lora_drop.text import decimals_of_column, number, visible, with_error

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "†": r"$^{\dagger}$",
    "±": r"$\pm$",
    **{sign: rf"\{sign}" for sign in "&%$#_{}"},
}
_TABLE = """<table>
<thead><tr>{% for head in heads %}<th scope="col">{{ head }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}<tr><th scope="row">{{ row[0] }}</th>{% for text, best in row[1:] -%}
<td>{% if best %}<strong>{{ text }}</strong>{% else %}{{ text }}{% endif %}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table>
<ul>{% for line in settings %}<li><code>{{ line }}</code></li>{% endfor %}</ul>
"""


def legend(table: Leaderboard) -> str:
    """What the signs mean."""
    text = "Score ± standard error. [ ]: not comparable, excluded from ranks and tests."
    if table.baseline is None:
        return text
    text += (
        f" * better, † worse than {table.baseline}: paired test over documents, p < 0.05, Holm-corrected over the "
        "tasks of the pair."
    )
    if table.tests > 1:
        text += f" **, ††: also when corrected over all {table.tests} tests of this table."
    return text


def settings_lines(table: Leaderboard) -> list[str]:
    """`system: settings` of every score, one line each to copy."""
    cells = ((line.system, line.cells.get(column.task)) for line in table.lines for column in table.columns)
    return [f"{visible(system)}: {cell.settings}" for system, cell in cells if cell is not None]


def to_terminal(table: Leaderboard) -> str:
    """Aligned columns, the settings below."""
    heads, rows = _rows(table)
    return "\n".join([aligned(heads, rows, left=["system"]), "", "Settings", *settings_lines(table)])


def to_markdown(table: Leaderboard) -> str:
    """A GitHub table, best scores bold; the settings as a list below."""
    heads, rows = _rows(table, _escape_markdown, best="**{}**")
    shown = tabulate(rows, heads, tablefmt="github", disable_numparse=True)
    return "\n".join([shown, "", *(f"- `{line.replace('`', '_')}`" for line in settings_lines(table))])


def to_latex(table: Leaderboard) -> str:
    """A booktabs table; needs `\\usepackage{booktabs}`. The settings are comments before it."""
    heads, rows = _rows(table, _escape_latex, best=r"\textbf{{{}}}")
    lines = [f"% {' '.join(line.split())}" for line in settings_lines(table)]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", r"\toprule"]
    lines += [" & ".join(heads) + r" \\", r"\midrule"]
    lines += [" & ".join(row) + r" \\" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def to_csv(table: Leaderboard) -> str:
    """One line per system and task, every number in full."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ["system", "task", "metric", "filter", "score", "stderr", "documents", "boundary"]
    writer.writerow([*names, "comparable", "p_holm", "p_table", "mark", "mean_rank", "settings"])
    for line in table.lines:
        for column in table.columns:
            cell = line.cells.get(column.task)
            if cell is not None:
                head = [plain_cell(text) for text in (line.system, column.task, column.metric, column.filter)]
                numbers = [cell.score, cell.stderr, cell.documents, cell.boundary]
                tests = [cell.comparable, cell.p_holm, cell.p_table, cell.mark, line.mean_rank]
                writer.writerow([*head, *numbers, *tests, plain_cell(cell.settings)])
    return out.getvalue().rstrip("\n")


def plain_cell(text: str) -> str:
    """A cell that no spreadsheet runs as a formula: an apostrophe before it makes it text."""
    text = visible(text)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) or (text[:1] in "\t\r" and text) else text


def to_html(table: Leaderboard) -> str:
    """A `<table>` and the settings as a list, escaped."""
    heads, shown = _rows(table)
    rows = []
    for line, (name, *texts, rank) in zip(table.lines, shown, strict=True):
        cells = [line.cells.get(column.task) for column in table.columns]
        best = [cell is not None and cell.best for cell in cells]
        rows.append([name, *zip(texts, best, strict=True), (rank, False)])
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(_TABLE)
    return template.render(heads=heads, rows=rows, settings=settings_lines(table))


FORMATS: dict[str, Callable[[Leaderboard], str]] = {
    "text": to_terminal,
    "markdown": to_markdown,
    "latex": to_latex,
    "csv": to_csv,
    "html": to_html,
}


def _rows(
    table: Leaderboard, escape: Callable[[str], str] = str, best: str = "{}"
) -> tuple[list[str], list[list[str]]]:
    """Heads and rows, each text escaped, the best scores as the pattern `best` says."""
    heads = ["system", *(column.title for column in table.columns), "mean rank"]
    places = {column.task: _places(table, column.task) for column in table.columns}

    def shown(cell: ScoreCell | None, decimals: int) -> str:
        if cell is None:
            return "–"
        text = escape(_plain(cell, decimals))
        return best.format(text) if cell.best else text

    rows = []
    for line in table.lines:
        cells = (shown(line.cells.get(task), decimals) for task, decimals in places.items())
        rows.append([escape(visible(line.system)), *cells, _rank(line.mean_rank)])
    return [escape(visible(head)) for head in heads], rows


def _places(table: Leaderboard, task: str) -> int:
    cells = (line.cells.get(task) for line in table.lines)
    return decimals_of_column((cell.score, cell.stderr) for cell in cells if cell is not None)


def _rank(rank: float | None) -> str:
    return "–" if rank is None else number(rank, 2)


def _plain(cell: ScoreCell, places: int) -> str:
    text = with_error(cell.score, cell.stderr, places) + cell.mark
    if cell.boundary is not None:
        text += f" (K={cell.boundary})"
    return text if cell.comparable else f"[{text}]"


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", text.replace("\n", " "))
