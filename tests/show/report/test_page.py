"""The report page: everything in one file, nothing in it runs but its own script, nothing leaves it."""

import http.client
import re
import shutil
import subprocess
import threading

import pytest

from lm_eval_lora_drop.commands import main as cli
from lm_eval_lora_drop.commands.view import Viewer
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.schema import from_config
from lm_eval_lora_drop.show.report.page import write_report
from lm_eval_lora_drop.show.verdict.sweep_text import verdict
from testing.run_files import swept, write_run

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
        "The answer",
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


def test_the_verdict_stands_before_any_table(page):
    text = page.read_text()
    task = from_config({"lora_drop": swept()}, "x").tasks["t"]
    assert verdict(task)
    assert text.index(f'<p class="verdict">{verdict(task)}</p>') < text.index("<table")


@pytest.fixture
def viewer(tmp_path):
    """A server of a folder that is empty yet, on a free port."""
    folder = tmp_path / "out"
    folder.mkdir()
    with Viewer([folder]) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server, folder
        finally:
            server.shutdown()
            thread.join()


def ask(server, path, host=None):
    connection = http.client.HTTPConnection(*server.server_address)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_view_waits_for_the_first_run_and_shows_it(viewer):
    server, folder = viewer
    status, text = ask(server, "/")
    assert status == 200
    assert "no results file" in text
    before = ask(server, "/state")[1]
    assert f'data-state="{before}"' in text
    write_run(folder / "full", {"em": [1, 0, 1]}, name="whole")
    after = ask(server, "/state")[1]
    assert after != before
    text = ask(server, "/")[1]
    assert "Leaderboard" in text
    assert f'data-state="{after}"' in text
    assert ask(server, "/state")[1] == after


@pytest.mark.parametrize("path", ["/out", "/full/", "/../", "/%2e%2e/etc/passwd", "/state/", "/?x=1"])
def test_view_serves_two_addresses_and_lists_nothing(viewer, path):
    server, folder = viewer
    write_run(folder / "full", {"em": [1, 0, 1]}, name="whole")
    assert ask(server, path)[0] == 404


def test_view_answers_to_this_machine_under_its_own_name_only(viewer):
    server, _ = viewer
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, "/", host="localhost:8000")[0] == 200
    for host in ("example.org", "example.org:80", "127.0.0.1.example.org"):
        assert ask(server, "/", host=host)[0] == 421


def test_view_refuses_a_folder_that_is_not_there_and_a_port_that_is_taken(viewer, tmp_path):
    server, folder = viewer
    with pytest.raises(ArgumentError, match="does not exist"):
        Viewer([tmp_path / "nowhere"])
    with pytest.raises(ArgumentError, match="Leave --port out"):
        Viewer([folder], port=server.server_address[1])
    with pytest.raises(ArgumentError, match="Leave --port out"):
        Viewer([folder], port=70_000)


def test_a_page_in_a_file_asks_for_nothing(page):
    assert "connect-src" not in page.read_text()
    assert "data-state" not in page.read_text()


def traded():
    """The entry of a sweep that was scored on another task too, whose name tries to break out."""
    entry = swept()
    task = entry["tasks"]["t"]
    also = {"task": f"other {PLANTED}", "metric": task["metric"], "aggregation": "mean", "journal": None}
    candidates = [{**row, "score": 1 - row["score"]} for row in task["sweep"]["candidates"]]
    task["also"] = [{**also, "validation": task["validation"], "candidates": candidates}]
    task["candidate_parameters"] = {row["variant"]: 100 * k for k, row in zip((4, 3, 2, 1, 0), candidates, strict=True)}
    return entry


def test_documents_without_a_value_on_one_side_are_shown_and_leave_no_run_out(tmp_path):
    for name, values in (("one", [1.0, None, 0.0, 1.0]), ("two", [0.0, 1.0, None, 1.0])):
        known = [value for value in values if value is not None]
        write_run(tmp_path / name, {"em": values}, name=name, scores={"em": sum(known) / len(known)})
    text, issues = write_report([tmp_path])
    assert not [issue for issue in issues if "cannot be used" in str(issue)]
    assert "Document 0: B worse" in text
    assert "Document 1: same score" in text


def test_what_is_traded_has_its_figure_and_its_numbers(tmp_path):
    run = write_run(tmp_path / "run", {"em": [0, 1, 1]}, name="chosen", lora_drop=traded())
    assert cli.main(["report", str(tmp_path), "-o", str(tmp_path / "report.html")]) == 0
    text = (tmp_path / "report.html").read_text()
    assert "t: the score against the parameters kept and the scores on other tasks" in text
    table = re.search("What is traded, in numbers.*?<pre>(.*?)</pre>", text, re.DOTALL)[1]
    assert "*300" in table  # K = 3 is better and smaller than all that are larger
    assert "Pareto front" in table
    assert re.findall("<script[^>]*>", text) == ["<script>"]
    assert cli.main(["figures", str(run), "-o", str(tmp_path / "drawn"), "--formats", "png"]) == 0
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["sweep-t-trade.png", "sweep-t.png"]
