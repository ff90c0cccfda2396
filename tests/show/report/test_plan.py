"""`lora-drop plan`: from a sweep, from two runs, from a guess; what is missing is said."""

import json

import pytest

from lm_eval_lora_drop.commands import main as cli
from lm_eval_lora_drop.statistics.power import PairedVariation, detectable_difference, documents_needed
from testing.run_files import swept, write_run


def planned(tmp_path, *argv):
    assert cli.main(["plan", *map(str, argv), "--json", str(tmp_path / "plan.json")]) == 0
    return json.loads((tmp_path / "plan.json").read_text())["plans"]


def test_from_a_sweep(tmp_path, capsys):
    """K = 3 of 4 was chosen: 6 of 40 documents more are right; base differs most. The speed is the sweep's own."""
    write_run(tmp_path / "run", {"em": [1.0, 0.0]}, lora_drop=swept())
    chosen, widest = planned(tmp_path, tmp_path / "run", "--documents", 100, "--difference", 0.05)
    assert chosen["pilot"] == "t, exact_match: K = 3 against K = 4"
    assert chosen["discordance"] == 6 / 40
    assert widest["pilot"] == "t, exact_match: K = 0 against K = 4"
    assert widest["discordance"] == 18 / 40
    known = PairedVariation.of_share(6 / 40)
    assert chosen["shown"][0]["difference"] == pytest.approx(detectable_difference(100, known))
    assert chosen["needed"][0]["documents"] == documents_needed(0.05, known)
    # 5 candidates, 5 milliseconds an answer, whatever this sweep took: it may have found its answers in the journal.
    assert chosen["shown"][0]["seconds"] == pytest.approx(100 * 5 * 0.005)
    assert "sweep of 5 candidates" in capsys.readouterr().out


def test_documents_that_belong_together_vary_together(tmp_path):
    """Five copies of eight documents are eight, not forty: the standard error of a difference says so."""
    entry = swept()
    task = entry["tasks"]["t"]
    rows = {row["variant"]: row for row in task["sweep"]["candidates"]}
    for name, right in (("0-3", 4), ("0-2", 6)):
        rows[name]["items"] = [float(i // 5 < right) for i in range(40)]
    write_run(tmp_path / "alone", {"em": [1.0, 0.0]}, lora_drop=json.loads(json.dumps(entry)))
    task["validation"]["clusters"] = [str(i // 5) for i in range(40)]
    write_run(tmp_path / "copies", {"em": [1.0, 0.0]}, lora_drop=entry)
    alone, copies = (
        planned(tmp_path, tmp_path / name, "--difference", 0.1)[0]["needed"][0]["documents"]
        for name in ("alone", "copies")
    )
    assert copies > 4 * alone


def test_from_a_pilot_and_a_guess(tmp_path, capsys):
    write_run(tmp_path / "a", {"rouge": [30.0, 40.0, 20.0, 10.0]}, name="a")
    write_run(tmp_path / "b", {"rouge": [31.0, 38.0, 20.0, 16.0]}, name="b")
    guess, pilot = planned(tmp_path, "--pilot", tmp_path / "a", tmp_path / "b", "--discordance", 0.1)
    assert guess["needed"][1]["documents"] == documents_needed(0.02, PairedVariation.of_share(0.1))
    assert pilot["pilot"] == "t, rouge: b against a"
    assert pilot["spread"] == pytest.approx(3.2016, abs=1e-3)
    assert [row["difference"] for row in pilot["needed"]] == [1, 2, 5, 10]
    said = capsys.readouterr().out
    assert "10 % of the documents change" in said
    assert "sweep of" not in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "nothing to plan from. Give runs with a sweep"),
        (["--discordance", "2"], "above 0 and at most 1, got 2"),
        (["--spread", "3", "--power", "1"], "--power is a share between 0 and 1"),
        (["--spread", "3", "--difference", "0"], "must be above 0, got 0"),
    ],
)
def test_what_is_wrong_is_said(argv, message, capsys):
    assert cli.main(["plan", *argv]) == 1
    assert message in capsys.readouterr().err


def test_runs_without_a_sweep_are_refused(tmp_path, capsys):
    write_run(tmp_path / "run", {"em": [1.0, 0.0]})
    assert cli.main(["plan", str(tmp_path / "run")]) == 1
    assert "no sweep in these files. Evaluate with boundary=auto." in capsys.readouterr().err
    write_run(tmp_path / "other", {"em": [1.0, 0.0]}, lora_drop=swept())
    assert cli.main(["plan", str(tmp_path / "other"), "--task", "nope"]) == 1
    assert "no sweep of nope in these files. There are sweeps of: t." in capsys.readouterr().err
