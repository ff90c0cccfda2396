"""Another distribution brings a candidate set, a task, a judge provider and a backend, and one run uses all of them."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from testing.tiny import make_adapter, make_base

TOY = Path(__file__).with_name("toy")
CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"
ENTRIES = """\
[lm_eval_lora_drop.candidates]
even_and_odd = toy_candidates:even_and_odd
[lm_eval_lora_drop.judges]
toy = toy_judge:PROVIDER
[lm_eval.models]
toy-lora-drop = toy_backend:ToyLM
"""
# What CONTRIBUTING allows for each, besides tests and docs.
MOST_FILES = {"candidate set": 2, "task": 3, "judge provider": 2, "backend": 2}


@pytest.fixture
def site(tmp_path):
    """A folder as pip leaves one: modules, and the metadata beside them."""
    folder = tmp_path / "site"
    shutil.copytree(TOY, folder)
    info = folder / "toy_lora_drop-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-lora-drop\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    return folder


def test_a_run_uses_what_another_distribution_brings(site, tmp_path):
    base = make_base(tmp_path / "base", num_layers=4)
    adapter = make_adapter(base, tmp_path / "adapter")
    panel = tmp_path / "panel.yaml"
    panel.write_text("judges:\n  - {name: long, provider: toy, model: counts-letters}\n")
    words = ["run", "--model", "toy-lora-drop", "--tasks", "toy_task", "--include_path", str(site / "toy_task")]
    arguments = f"pretrained={base},peft={adapter},boundary=auto,sweep_candidates=even_and_odd,sweep_limit=3"
    words += ["--model_args", f"{arguments},sweep_dir={tmp_path / 'journal'}", "--device", "cpu", "--log_samples"]
    words += ["--metadata", json.dumps({"judges": str(panel)}), "--output_path", str(tmp_path / "out")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(site), str(Path(__file__).parents[2])]),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    # Without lm-eval's own ten thousand task files, which take longer to list than all the rest.
    program = "import sys\nfrom testing import task_files\nfrom lm_eval.__main__ import cli_evaluate\n"
    program += "task_files.leave_out()\nsys.exit(cli_evaluate())"
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(file.read_text())
    sweep = results["config"]["lora_drop"]["tasks"]["toy_task"]["sweep"]
    assert {one["variant"] for one in sweep["candidates"]} == {"0-3", "0+2", "1+3", "none"}
    assert sweep["engine"] == "toy"
    table = results["results"]["toy_task"]
    assert table["answer_letters,none"] > 0
    assert table["gpt_score_verdicts,none"] == 4
    assert 0 <= table["gpt_score,none"] <= 100
    assert list((tmp_path / "out").rglob("*.svg"))  # drawn for our screen, after everything that lm_eval prints


def test_an_unknown_provider_is_answered_with_those_that_are_installed(site):
    program = (
        "from lm_eval_lora_drop.judge.known_providers import provider_spec\n"
        "print(provider_spec('toy').module)\n"
        "try: provider_spec('toi')\n"
        "except ValueError as error: print(error)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(Path(__file__).parents[2])])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines() == [
        "toy_judge",
        "provider must be one of openai, anthropic, google, hf, toy; got 'toi'.",
    ]


@pytest.mark.parametrize("file", sorted(TOY.rglob("*.py")), ids=lambda file: file.name)
def test_the_toy_imports_nothing_that_is_private(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [*node.module.split("."), *(name.name for name in node.names)]
            assert not [name for name in names if name.startswith("_")]


def test_contributing_names_the_files_of_each_extension():
    text = CONTRIBUTING.read_text(encoding="utf-8")
    for kind, most in MOST_FILES.items():
        line = re.search(rf"^- A {kind}[^:]*:(.*?)(?=^- |^$)", text, re.M | re.S)
        assert line is not None, kind
        for way in line[1].split("elsewhere:"):
            files = set(re.findall(r"`([\w./]+\.(?:py|yaml|toml))`", way))
            assert 1 <= len(files) <= most, (kind, files)
