"""Reports over folders in which something is wrong: is the page complete, and does nothing of a run act in it?
Each folder holds two good runs and one that is damaged or hostile (as in `tests.campaign.fuzz`; markup, overrides of the
writing direction, formulas, links out of the folder, a pipe). `report` and `leaderboard` must end without an exception
but ours, show the good runs, and show no markup of a run as markup. Where there is a Chromium
each page is opened in it: no script of a run runs, and by the browser's own log of the network the page requests nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from hypothesis import strategies as st

from lm_eval_lora_drop.errors import LoraDropError
from lm_eval_lora_drop.show.report.leaderboard import leaderboard
from lm_eval_lora_drop.show.report.leaderboard_text import FORMATS
from lm_eval_lora_drop.show.report.page import write_report
from testing.run_files import swept, write_run
from tests.campaign.fuzz import Draw
from tests.campaign.fuzz import runs as damaged_runs
from tests.show.report.test_page import chromium

MARK = "ran-in-the-page"
ATTACKS = (
    f"<script>document.title='{MARK}'</script>",
    f"<img src=x onerror=\"document.title='{MARK}'\">",
    f"</div></article><svg onload=\"document.title='{MARK}'\">",
    '</p><link rel="stylesheet" href="http://127.0.0.1:9/a.css"><img src="http://127.0.0.1:9/a.png">',
    '<meta http-equiv="refresh" content="0;url=http://127.0.0.1:9/">',
    "\u202e]reversed[\u2066",
    '=HYPERLINK("http://127.0.0.1/")',
    "\x1b[2J\x1b]0;title\x07",
)


def make(folder: Path, draw: Draw) -> None:
    """Two good runs and a bad one."""
    for number, name in enumerate(("good-one", "good-two")):
        values = [float(bit) for bit in f"{draw(st.integers(0, 2**20 - 1)):020b}"]
        write_run(folder / name, {"acc": values}, name=name, lora_drop=swept() if number else None)
    attack = draw(st.sampled_from(ATTACKS))
    bad = folder / "bad"
    match draw(st.integers(0, 3)):
        case 0:
            bad.mkdir()
            try:
                damaged_runs(draw, bad)
            except Exception:  # what reading it raises is another campaign's matter; here the file shall lie there
                traceback.clear_frames(sys.exc_info()[2])
        case 1:
            outputs = [f"{attack} {i}" for i in range(20)]
            write_run(bad, {"acc": [1.0] * 20}, name=attack, outputs=outputs, targets=outputs, prompt=attack)
        case 2:
            write_run(bad, {"acc": [1.0] * 20}, name=f"x{attack}", samples=False, release=attack)
        case _:
            bad.mkdir()
            (bad / "results_2026-01-01T00-00-00.json").symlink_to("/etc/passwd")
            os.mkfifo(bad / "results_2026-01-02T00-00-00.json")


def wrong(folder: Path) -> str | None:
    """What is wrong with the page and the tables of a folder, None where nothing is."""
    try:
        page, _ = write_report([folder], documents=5)
        table = leaderboard([folder])
        tables = {name: show(table) for name, show in FORMATS.items()}
    except LoraDropError as error:
        return f"no page: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    (folder / "page.html").write_text(page, errors="surrogateescape")
    if "</html>" not in page or "good-one" not in page or "good-two" not in page:
        return "the page is not complete"
    if re.search(r"<script>document.title|<img src=x|<svg onload", page):
        return "markup of a run is markup of the page"
    if re.search("[\u202a-\u202e\u2066-\u2069\x1b]", page + tables["text"]):
        return "a run's text can reorder the page or steer the terminal"
    if re.search(r"(^|,)\"?[=@]", tables["csv"], re.MULTILINE):
        return "a cell of the CSV is a formula"
    if shutil.which("chromium") is None:
        return None
    log = folder / "network.json"
    shown = chromium(folder / "page.html", "--dump-dom", f"--log-net-log={log}").stdout
    if f"<title>{MARK}" in shown:
        return "a script of a run ran"
    if "127.0.0.1:9" in log.read_text():
        return "the page requested what a run names"
    return None if 'id="settings"' in shown and "good-two" in shown else "the browser does not show the whole page"


def one_report(draw: Draw) -> None:
    """Raises AssertionError where something is wrong with a folder's page or tables."""
    with tempfile.TemporaryDirectory() as place:
        make(Path(place), draw)
        reason = wrong(Path(place))
        assert reason is None, reason
