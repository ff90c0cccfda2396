"""The campaign against judges, small and seeded, as it is run at length by `python -m tests.campaign.judges`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lm_eval_lora_drop.judge.redact import Redactor
from tests.campaign.judge_vendor import forms
from tests.campaign.judges import holds

ROOT = Path(__file__).resolve().parents[2]


def test_kills_and_faults_lose_nothing_and_pay_nothing_twice(tmp_path):
    command = [sys.executable, "-m", "tests.campaign.judges", "--calls", "240", "--kills", "4", "--seed", "1"]
    found = subprocess.run([*command, "--folder", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    rows = [line.split("|") for line in found.stdout.split("\n") if line.startswith("| ")][1:]
    assert [int(row[-2]) for row in rows] == [0] * 6
    assert sum(1 for line in (tmp_path / "vendor.jsonl").read_text().split("\n") if "plain" not in line) > 60
    assert json.loads((tmp_path / "state.json").read_text())["kills"] >= 4


KEY = "sk-planted+key/with=signs&more"


@pytest.mark.parametrize("text", [*forms(KEY).split(" ")[:3], f"x{KEY[4:12]}y"])
def test_the_search_for_keys_finds_what_it_is_for(text):
    assert holds(text.encode(), KEY)
    assert not holds(Redactor([KEY]).message(text).encode(), KEY)
    assert not holds(KEY[4:11].encode(), KEY)
