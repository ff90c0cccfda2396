"""A figure for a dark page: everything in it can be seen there, and series keep their hues."""

import base64
import re

import pytest
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.text import Text

from lm_eval_lora_drop.record.schema import from_config
from lm_eval_lora_drop.show.figures.style import DARK_GROUND, darken, data_uri
from lm_eval_lora_drop.show.figures.sweep import sweep_figure
from testing.run_files import swept


def luminance(colour):
    """Relative luminance, WCAG 2.2."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgba(colour)[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.fixture
def figure():
    return sweep_figure("t", from_config({"lora_drop": swept()}, "x").tasks["t"])


def test_text_and_lines_can_be_told_from_the_ground(figure):
    """4.5 : 1 for text, 3 : 1 for what is drawn (WCAG 2.2, 1.4.3 and 1.4.11); grid lines and bands are to be faint."""
    darken(figure)
    assert contrast(figure.get_facecolor(), DARK_GROUND) == pytest.approx(1, abs=0.02)
    texts = [one for one in figure.findobj(Text) if one.get_text().strip()]
    assert len(texts) > 10
    assert min(contrast(one.get_color(), DARK_GROUND) for one in texts) >= 4.5
    grid = {id(line) for axes in figure.axes for line in (*axes.get_xgridlines(), *axes.get_ygridlines())}
    lines = [one for one in figure.findobj(Line2D) if id(one) not in grid]
    assert len(lines) > 5
    for line in lines:
        # A mark without a fill is seen by its edge.
        assert max(contrast(line.get_color(), DARK_GROUND), contrast(line.get_markeredgecolor(), DARK_GROUND)) >= 3


def test_ticks_that_are_made_while_drawing_are_not_black(figure):
    svg = base64.b64decode(data_uri(figure, dark=True).partition(",")[2]).decode()
    assert not re.search(r"(?:fill|stroke): ?#000000", svg)
    # Text is drawn as paths, black where no colour is named.
    groups = re.findall(r'<g id="text_\d+">\s*<!--[^>]*-->\s*<g ([^>]*)>', svg)
    assert groups
    assert all("fill: #" in group for group in groups)
