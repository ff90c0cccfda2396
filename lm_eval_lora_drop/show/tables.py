"""Tables and paragraphs for a terminal, a log or a file without formatting."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from tabulate import tabulate


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str]) -> str:
    """Aligned columns, each as wide as its cells, so that no heading and no cell is broken.

    The columns with headings in `left` are aligned left, the others right. A heading may have several lines; all end
    above the rule.
    """
    align = ["left" if name in left else "right" for name in headings]
    most = max((name.count("\n") for name in headings), default=0)
    headings = ["\n" * (most - name.count("\n")) + name for name in headings]
    # tabulate cannot align the columns of a table without rows.
    aligned = {"colalign": align} if rows else {}
    text = tabulate(rows, headings, tablefmt="simple", disable_numparse=True, **aligned)
    return "\n".join(line.rstrip() for line in text.split("\n"))


def width() -> int:
    """Columns of the terminal; 80 where standard output is a pipe or a file."""
    return shutil.get_terminal_size().columns


def paragraph(text: str) -> str:
    """The text in lines as wide as the terminal; words such as paths and commands are not broken."""
    return textwrap.fill(text, width(), break_long_words=False, break_on_hyphens=False)
