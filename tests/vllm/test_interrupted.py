"""Killed: the test of hf-lora-drop, run with vllm-lora-drop."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends import test_interrupted as hf
from tests.vllm.conftest import SMALL


@pytest.fixture
def program(tiny_base, tiny_adapter, tmp_path):
    """As the fixture of the same name for hf."""

    def run(name, *, sweep_dir="sweeps", **settings):
        model_args = {
            "pretrained": str(tiny_base),
            "peft": str(tiny_adapter),
            "sweep_limit": 10,
            "sweep_dir": str(tmp_path / sweep_dir),
            # One document under all boundaries at a time, so that there is a middle to be killed in.
            "sweep_batch_size": 5,
            **SMALL,
            **settings.pop("model_args", {}),
        }
        output = tmp_path / name
        given = {"backend": "vllm", "model_args": model_args, "output": str(output), **settings}
        command = [sys.executable, "-m", hf.MODULE, json.dumps(given)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=hf.ROOT, env={**os.environ, **hf.SETTINGS})
        file = Path(f"{output}.0.json")
        return [json.loads(file.read_text()) if file.exists() else None], [(done.returncode, done.stderr)]

    return run


def test_a_killed_sweep_goes_on_where_it_was(program):
    hf.goes_on_where_it_was(program, hf.PAIRS, {})
