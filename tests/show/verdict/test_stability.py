"""`lora-drop stability`: the sweep's choice repeated from recorded scores."""

import json

import lm_eval_lora_drop as lora_drop
from lm_eval_lora_drop.commands import main as cli
from lm_eval_lora_drop.text import percent
from testing.run_files import swept, write_run


def test_stability_of_a_recorded_sweep(tmp_path, capsys):
    """Words and numbers agree with the record: K = 3 right on 26 of 40; the same again with the same seed."""
    path = write_run(tmp_path, {"em": [1.0, 0.0]}, lora_drop=swept())
    assert cli.main(["stability", str(path), "--json", str(tmp_path / "s.json"), "--sizes", "10", "39"]) == 0
    said = capsys.readouterr().out
    (found,) = json.loads((tmp_path / "s.json").read_text())
    assert found["chosen"] == "0-2"
    assert found["trust"]["apparent"] == 26 / 40
    assert found["trust"]["corrected"] < 26 / 40
    assert [size["documents"] for size in found["sizes"]] == [10, 39]
    words = " ".join(said.split())
    assert f"The same choice (K = 3) in {percent(found['trust']['choice_share']['0-2'])} of" in words
    assert found["verdict"] in words
    assert str(*lora_drop.stability(path, sizes=[10, 39])) + "\n" == said
    assert cli.main(["stability", str(path), "--sizes", "10", "39"]) == 0
    assert capsys.readouterr().out == said


def test_nothing_to_repeat_is_said(tmp_path, capsys):
    write_run(tmp_path, {"em": [1.0, 0.0]})
    assert cli.main(["stability", str(tmp_path)]) == 1
    assert "no sweep in these files" in capsys.readouterr().err
