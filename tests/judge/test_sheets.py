"""Sheets for people: blinded, filled, read back; and what a model wrote does not run in the form."""

import csv
import html
import json
import re

import pytest

from lm_eval_lora_drop.commands.main import main
from lm_eval_lora_drop.judge.people.sheets import COLUMNS
from testing.judged_runs import write_judged
from tests.show.report.test_page import chromium

PLANTED = '</pre></article><script>document.title="broken"</script><img src=x onerror="document.title=1">'
FIRST = ["=1+1", PLANTED, *(f"first {i}, 中文" for i in range(2, 34))]
SECOND = ["plain", "plain", *(f"second {i}" for i in range(2, 34))]
TEXTS = dict.fromkeys(FIRST, "first") | dict.fromkeys(["'" + FIRST[0]], "first")


@pytest.fixture
def sheet(tmp_path):
    """The folder with sheets of all 34 pairs of two systems."""
    one = write_judged(tmp_path / "one", FIRST, name="secretone")
    two = write_judged(tmp_path / "two", SECOND, name="secrettwo")
    assert main(["judge", "sheet", str(one), str(two), "-o", str(tmp_path / "sheet"), "--number", "34"]) == 0
    return tmp_path / "sheet"


def rows_of(folder):
    with (folder / "sheet.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path, rows, delimiter=","):
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def prefer_first(rows):
    """A rater who always finds the first system's text better, but for the first three pairs: tie, lost, nothing."""
    for number, row in enumerate(rows):
        mine = "1" if row["text_1"] in TEXTS else "2"
        value = {0: "tie", 1: {"1": "2", "2": "1"}[mine], 2: ""}.get(number, mine)
        row |= dict.fromkeys(COLUMNS, value)
    return rows


def collected(folder, *files):
    assert main(["judge", "collect", str(folder / "key.json"), *map(str, files), "--json", str(folder / "f.json")]) == 0
    return json.loads((folder / "f.json").read_text())


def test_thirty_pairs_unless_told_otherwise_the_same_for_the_same_seed(tmp_path, sheet):
    def write(name, *extra):
        runs = [str(tmp_path / run) for run in ("one", "two")]
        assert main(["judge", "sheet", *runs, "-o", str(tmp_path / name), *extra]) == 0
        return (tmp_path / name / "sheet.csv").read_bytes()

    first = write("a")
    assert len(rows_of(tmp_path / "a")) == 30
    assert write("b") == first
    assert write("c", "--seed", "1") != first


def test_neither_sheet_says_whose_text_it_is_and_order_varies(sheet):
    for name in ("sheet.csv", "sheet.html"):
        assert "secret" not in (sheet / name).read_text(encoding="utf-8")
    assert len({row["text_1"] in TEXTS for row in rows_of(sheet)}) == 2
    assert json.loads((sheet / "key.json").read_text())["systems"] == ["secretone", "secrettwo"]
    assert {"fluency", "accuracy", "readability", "completeness", "overall"} <= set(rows_of(sheet)[0])


def test_a_cell_is_never_a_formula(sheet):
    cells = [row[name] for row in rows_of(sheet) for name in ("source", "reference", "text_1", "text_2")]
    assert "'=1+1" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_a_filled_sheet_gives_the_first_systems_win_rate(sheet, tmp_path, delimiter, capsys):
    filled = write_rows(tmp_path / "ann.csv", prefer_first(rows_of(sheet)), delimiter)
    found = collected(sheet, filled)
    assert set(found["criteria"]) == set(COLUMNS)
    for row in found["criteria"].values():
        assert (row["wins"], row["losses"], row["ties"], row["missing"]) == (31, 1, 1, 1)
        assert row["win_rate"] == pytest.approx(31.5 / 33)
        assert row["agreement"] is None
    assert "agreement -, 1 missing" in capsys.readouterr().out


def test_two_raters_who_say_the_same_agree_and_opposite_ones_do_not(sheet, tmp_path):
    ann = write_rows(tmp_path / "ann.csv", prefer_first(rows_of(sheet)))
    same = write_rows(tmp_path / "same.csv", list(reversed(prefer_first(rows_of(sheet)))))
    assert collected(sheet, ann, same)["criteria"]["overall"]["agreement"] == pytest.approx(1.0)
    turned = prefer_first(rows_of(sheet))
    for row in turned:
        row |= {name: {"1": "2", "2": "1"}.get(row[name], row[name]) for name in COLUMNS}
    found = collected(sheet, ann, write_rows(tmp_path / "bob.csv", turned))["criteria"]["overall"]
    assert found["agreement"] < 0
    assert found["win_rate"] == pytest.approx(0.5)


def test_missing_rows_are_counted_as_missing(sheet, tmp_path):
    found = collected(sheet, write_rows(tmp_path / "half.csv", prefer_first(rows_of(sheet))[:10]))
    assert found["criteria"]["fluency"]["missing"] == 34 - 9
    assert found["criteria"]["fluency"]["wins"] == 7


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda rows: rows[4].update(fluency="3"), "row 6, fluency: must be 1, 2, tie or empty; got '3'"),
        (lambda rows: rows[4].update(overall="better"), "row 6, overall: must be 1, 2, tie or empty"),
        (lambda rows: rows[4].update(pair="99"), "row 6: pair '99' is not in the key"),
        (lambda rows: rows[4].update(pair=rows[3]["pair"]), "or is there twice"),
        (lambda rows: rows[4].update(sheet="s000000000000"), "row 6: belongs to sheet 's000000000000'"),
        (lambda rows: [row.pop("fluency") for row in rows], "the columns fluency are gone"),
    ],
    ids=["wrong number", "wrong word", "unknown pair", "pair twice", "foreign sheet", "column gone"],
)
def test_a_bad_sheet_is_refused_with_the_place(sheet, tmp_path, harm, said, capsys):
    rows = prefer_first(rows_of(sheet))
    harm(rows)
    file = write_rows(tmp_path / "bad.csv", rows)
    assert main(["judge", "collect", str(sheet / "key.json"), str(file)]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "are gone"),
        (f"sheet,pair,{','.join(COLUMNS)}\n".encode(), "there are no rows"),
        (b"\xff\xfe\x00s", "must be a filled sheet in UTF-8"),
    ],
    ids=["empty", "header alone", "UTF-16"],
)
def test_a_file_that_is_no_filled_sheet_is_refused(sheet, tmp_path, content, said, capsys):
    (tmp_path / "bad.csv").write_bytes(content)
    assert main(["judge", "collect", str(sheet / "key.json"), str(tmp_path / "bad.csv")]) == 1
    assert said in capsys.readouterr().err
    assert main(["judge", "collect", str(tmp_path / "bad.csv"), str(sheet / "sheet.csv")]) == 1
    assert "must be key.json of `lora-drop judge sheet`" in capsys.readouterr().err


def test_more_pairs_than_differ_are_refused(tmp_path, capsys):
    one = write_judged(tmp_path / "one", ["a", "b"], name="one")
    two = write_judged(tmp_path / "two", ["a", "c"], name="two")
    assert main(["judge", "sheet", str(one), str(two), "-o", str(tmp_path / "sheet")]) == 1
    assert "from 1 to 1" in capsys.readouterr().err


def test_the_form_holds_the_planted_text_as_text(sheet):
    text = (sheet / "sheet.html").read_text(encoding="utf-8")
    assert re.findall("<script[^>]*>", text) == ["<script>"]
    assert "<img" not in text
    assert "&lt;script&gt;" in text
    assert not re.search(r"""(?:src|href)=["']""", text)


def test_planted_scripts_do_not_run_in_a_browser_and_ours_does(sheet):
    dom = chromium(sheet / "sheet.html", "--dump-dom").stdout
    assert "<title>Which text is better?</title>" in dom
    assert f"{34 * len(COLUMNS)} questions are open." in dom


def test_what_the_form_saves_is_read_back(sheet, tmp_path):
    """A second script, let in for this test, chooses text 1 everywhere and shows the file that would be saved."""
    fill = (
        "<script>for (const box of form.querySelectorAll('fieldset')) box.querySelector('input').click();"
        "const shown = document.createElement('pre'); shown.id = 'csv'; shown.textContent = table();"
        "document.body.append(shown);</script></body>"
    )
    text = re.sub("<meta http-equiv[^>]*>", "", (sheet / "sheet.html").read_text(encoding="utf-8"))
    page = sheet / "filled.html"
    page.write_text(text.replace("</body>", fill), encoding="utf-8")
    dom = chromium(page, "--dump-dom").stdout
    assert "All questions are answered." in dom
    (tmp_path / "form.csv").write_text(html.unescape(re.search('<pre id="csv">(.*?)</pre>', dom, re.DOTALL)[1]))
    swapped = sum(entry["swapped"] for entry in json.loads((sheet / "key.json").read_text())["pairs"])
    row = collected(sheet, tmp_path / "form.csv")["criteria"]["overall"]
    assert (row["wins"], row["losses"], row["missing"]) == (34 - swapped, swapped, 0)
