"""The report page: everything in one file, nothing in it runs but its own script, nothing leaves it."""

import re
import shutil
import subprocess

import pytest

from lm_eval_lora_drop.commands import main as cli
from tests.report.files import swept, write_run

PLANTED = '</div><script>document.title="broken"</script><img src="http://192.0.2.1/x.png" onerror="document.title=1">'


@pytest.fixture
def page(tmp_path):
    """Two systems; model outputs, targets, prompts and names try to break out, one text has 10,000 characters."""
    outputs = [PLANTED, "long " * 2000, "plain"]
    both = {"outputs": outputs, "targets": [PLANTED, "b", "c"], "prompt": PLANTED}
    write_run(tmp_path / "full", {"em": [1, 0, 1]}, name="whole", **both)
    write_run(tmp_path / "auto", {"em": [0, 1, 1]}, name=f"chosen{PLANTED.replace('/', '')}", lora_drop=swept(), **both)
    assert cli.main(["report", str(tmp_path), "-o", str(tmp_path / "out" / "report.html"), "--baseline", "whole"]) == 0
    return tmp_path / "out" / "report.html"


def test_page_holds_everything_and_only_its_own_script(page):
    text = page.read_text()
    assert re.findall("<script[^>]*>", text) == ["<script>"]
    assert re.findall("<img[^>]*>", text) == re.findall('<img src="data:image/svg[^>]*>', text)
    assert "default-src 'none'" in text
    assert not re.search(r"""(?:src|href)=["'](?!data:image|#)""", text)
    assert text.count("long ") >= 2000
    for what in (
        "Summary",
        "Leaderboard",
        "How K was found",
        "Outputs side by side",
        "sha256:adapter",
        "on new documents",
    ):
        assert what in text


def chromium(page, *flags):
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("chromium is not installed, so the page cannot be opened")
    quiet = "--disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", *quiet.split()]
    command += [f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=4000", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def test_planted_scripts_do_not_run_and_ours_does(page, tmp_path):
    """In a real browser: the title is the page's own, the filter form was shown by our script, nothing is asked for."""
    log = tmp_path / "net.json"
    dom = chromium(page, "--dump-dom", f"--log-net-log={log}").stdout
    assert "<title>Which layers does the adapter need?</title>" in dom
    assert "3 of 3 shown" in dom
    assert '<form hidden=""' not in dom
    assert "192.0.2.1" not in log.read_text()


def test_the_policy_stops_a_script_that_got_in(page):
    """Were the escaping to fail, the page's policy would still stop script and request."""
    evil = page.with_name("evil.html")
    evil.write_text(page.read_text().replace("</main>", f"{PLANTED}</main>"))
    log = page.with_name("net.json")
    dom = chromium(evil, "--dump-dom", f"--log-net-log={log}").stdout
    assert "<title>Which layers does the adapter need?</title>" in dom
    assert "192.0.2.1" not in log.read_text()


def test_nothing_is_wider_than_a_phone(page):
    """Long words and tables scroll inside their boxes, the page itself does not."""
    probe = '<script>document.title = document.documentElement.scrollWidth + " of " + innerWidth</script></body>'
    text = re.sub("<meta http-equiv[^>]*>", "", page.read_text()).replace("</body>", probe)
    open_page = page.with_name("probe.html")
    open_page.write_text(text)
    dom = chromium(open_page, "--dump-dom", "--window-size=500,900").stdout
    wide, window = map(int, re.search(r"<title>(\d+) of (\d+)</title>", dom).groups())
    assert wide <= window
