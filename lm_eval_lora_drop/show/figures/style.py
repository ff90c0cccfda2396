"""How figures look and how they are saved: for print, without pyplot (no global state, no display).

The palette is the colour-blind-safe one of Okabe and Ito (2008); marker shapes and line styles tell the series apart
without colour. Text from tasks is shown as it is. The files are the same byte for byte when drawn again with the same
libraries.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import write_atomically
from lm_eval_lora_drop.text import logger, visible
from lm_eval_lora_drop.variant import Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

log = logger(__name__)

FORMATS = ("png", "svg", "pdf")
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY = "#6E6E6E"

# Any: matplotlib types the keys of its settings one by one, and differently from release to release.
STYLE: Any = {
    "axes.grid": True,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "font.size": 9,
    "grid.alpha": 0.5,
    "grid.color": "#D0D0D0",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    # Long enough to show how a line is dashed.
    "legend.handlelength": 3.2,
    # A page that is not white (GitHub's dark theme) would swallow black text on a transparent ground.
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    # Without a fixed salt the identifiers inside an SVG differ from run to run.
    "svg.hashsalt": "lm-eval-lora-drop",
    # A task or metric may have a dollar sign in its name; it is no formula.
    "text.parse_math": False,
}
# The day is left out of the files, so that drawing again gives no difference.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}

HOLLOW: Any = {
    "fmt": "o",
    "color": GREEN,
    "markerfacecolor": "none",
    "markersize": 8,
    "elinewidth": 1,
    "capsize": 3,
    "zorder": 5,
}
"""An error bar of the test split, among validation scores that are filled."""


class NotebookFigure(Figure):
    """A figure that a notebook shows by itself: matplotlib's own are shown only after `%matplotlib inline` or an import
    of pyplot (IPython asks an object for `_repr_png_`)."""

    def _repr_png_(self) -> bytes:
        drawn = io.BytesIO()
        with mpl.rc_context(STYLE):
            self.savefig(drawn, format="png", dpi=110, metadata=_METADATA["png"])
        return drawn.getvalue()


def draw_marks(
    axes: Axes, points: Sequence[tuple[Variant, float, float]], chosen: str, labels: Mapping[str, str]
) -> None:
    """Mark the chosen candidate, the full adapter and the base model among `points` (candidate, x, y).

    `labels` says what the legend calls chosen, full and base. Full is larger and below, so that both show where full
    was chosen.
    """
    for name, marker, colour, size, order in (
        ("chosen", "D", VERMILLION, 6, 6),
        ("full", "s", BLUE, 9, 4),
        ("base", "^", GREY, 7, 4),
    ):
        for kept, x, y in points:
            if {"chosen": str(kept) == chosen, "full": kept.is_full, "base": kept.is_base}[name]:
                look: Any = {"color": colour, "markersize": size, "zorder": order, "linestyle": "none"}
                axes.plot([x], [y], marker=marker, clip_on=False, label=labels.get(name), **look)
                break


def save_figure(figure: Figure, stem: Path, formats: Iterable[str] = ("png", "svg")) -> list[Path]:
    """Write `stem.png`, `stem.svg`, ... and return their paths; the folder is made.

    Raises:
        ArgumentError: a format that is not in `FORMATS`.
    """
    wanted = check_formats(formats)
    paths = [stem.with_name(f"{stem.name}.{name}") for name in wanted]
    with mpl.rc_context(STYLE):
        for name, path in zip(wanted, paths, strict=True):
            drawn = io.BytesIO()
            figure.savefig(drawn, format=name, dpi=200, metadata=_METADATA[name])
            write_atomically(path, drawn.getvalue())
    return paths


def or_warn(draw: Callable[[], list[Path]], again: str = "lora-drop figures FOLDER") -> list[Path]:
    """The figures that `draw` has written; none, and a warning, where it fails: a picture ends no work that is done.

    `again` is the command that draws them again.
    """
    try:
        return draw()
    except Exception as error:  # noqa: BLE001
        log.warning("A figure could not be written (%s). Nothing else is lost; %s draws it again.", error, again)
        return []


def data_uri(figure: Figure) -> str:
    """The figure as an SVG in a data URI: an image can neither run a script nor clash with another's identifiers."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata=_METADATA["svg"])
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def image_element(figure: Figure, alt: str) -> str:
    """An HTML `img` that holds the figure itself, for a page without files beside it."""
    return f'<img alt="{escape(visible(alt))}" style="max-width:100%" src="{data_uri(figure)}">'


def check_formats(formats: Iterable[str]) -> list[str]:
    """The formats without blanks around them.

    Raises:
        ArgumentError: one that is not in `FORMATS`.
    """
    wanted = [name.strip() for name in formats]
    if unknown := [name for name in wanted if name not in FORMATS]:
        raise ArgumentError(f"a figure can be saved as {', '.join(FORMATS)}, got {', '.join(unknown)}.")
    return wanted


def clean(text: str) -> str:
    """Text from a task, fit to be drawn: what does not print (control characters, lone surrogates) becomes a blank."""
    return "".join(character if character.isprintable() else " " for character in text)


def shorten(text: str, length: int = 40) -> str:
    """The text, cut to `length` characters with an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "…"


def file_name(text: str) -> str:
    """A name that every file system takes: letters, digits, `_`, `.` and `-`."""
    return re.sub(r"[^\w.-]+", "_", clean(text)).strip("._")[:100] or "task"
