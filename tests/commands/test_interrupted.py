"""Ctrl-C: one line, exit code 130, and the same command goes on from what was finished. Real processes and signals."""

import json
import signal
import threading
import time
from collections import Counter

import pytest
import yaml
from lm_eval.utils import sanitize_model_name

from testing.forked import Forked
from testing.judge_servers import KEYS, VARIABLES, JudgeServer, Say, score_json
from testing.judged_runs import write_judged
from testing.toy import write_task
from tests.harness.test_hooks import ARMED

# Only the test's own tasks are listed: the harness's thousands are not what is tried here.
LM_EVAL = """
from testing import task_files
task_files.leave_out()
sys.argv = ["lm_eval", *ARGUMENTS]
from lm_eval.__main__ import cli_evaluate
cli_evaluate()
"""


def until(true, process):
    """Wait for what must come while the process lives."""
    while not true():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


def interrupted(process, number=signal.SIGINT):
    """The line that a process ends with; nothing else it says may be a traceback."""
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    return said.rstrip("\n").split("\n")[-1]


@pytest.fixture
def lm_eval(tiny_base, tiny_adapter, tmp_path):
    """Start `lm_eval --model hf-lora-drop` on a task with twelve validation documents."""
    splits = {
        split: [{"question": f"{split} {i}?", "answer": str(i)} for i in range(size)]
        for split, size in (("validation", 12), ("test", 2))
    }
    limits = {"until": ["\n\n"], "max_gen_toks": 4, "do_sample": False}
    write_task(tmp_path / "tasks", "toy_of_this_test", splits, generation_kwargs=limits)

    def run(model_args, program=LM_EVAL, *more):
        arguments = [
            *("run", "--model", "hf-lora-drop", "--device", "cpu", "--batch_size", "1"),
            *("--model_args", f"pretrained={tiny_base},peft={tiny_adapter},dtype=float32,{model_args}"),
            *("--tasks", "toy_of_this_test", "--include_path", str(tmp_path / "tasks"), *more),
        ]
        code = f"{ARMED}ARGUMENTS = {arguments!r}\n{program}"
        return Forked(["-c", code], HF_DATASETS_CACHE=str(tmp_path / "cache"))

    return run


@pytest.mark.parametrize(
    ("number", "how"),
    [
        (signal.SIGINT, "interrupted"),
        (signal.SIGTERM, "ended by SIGTERM"),
    ],
    ids=["SIGINT", "SIGTERM"],
)
def test_a_sweep_under_lm_eval_goes_on_from_its_journal(number, how, lm_eval, tmp_path):
    model_args = f"sweep_dir={tmp_path / 'sweeps'},sweep_limit=12,sweep_engine=plain,sweep_log=none"

    def answered():
        lines = [line for file in (tmp_path / "sweeps").glob("*.jsonl") for line in file.read_text().split("\n")[1:-1]]
        return [json.loads(line) for line in lines]

    first = lm_eval(model_args)
    until(lambda: len(answered()) >= 10, first)
    said = interrupted(first, number)
    kept = f"Finished answers of a sweep are kept in the journal under {tmp_path / 'sweeps'}"
    assert said == f"lm_eval: {how}. {kept}; run the same command to resume."
    before = answered()
    assert 10 <= len(before) < 60
    second = lm_eval(model_args)
    _, told = second.communicate()
    assert second.returncode == 0, told
    after = answered()
    assert after[: len(before)] == before
    pairs = Counter((line["variant"], line["key"]) for line in after)
    assert len(pairs) == 60
    assert set(pairs.values()) == {1}


@pytest.mark.parametrize(
    "error",
    [
        "torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')",
        'RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can\'t allocate memory")',
    ],
)
def test_a_sweep_without_memory_names_its_journal(error, lm_eval, tmp_path):
    """The error is the allocator's own; a machine without memory is nothing that a test can have."""
    stop = f"""
import torch
from lm_eval.models.huggingface import HFLM
def fail(*_, **__):
    raise {error}
HFLM._model_generate = fail
"""
    process = lm_eval(
        f"sweep_dir={tmp_path / 'sweeps'},sweep_limit=4,sweep_engine=plain,sweep_log=none", stop + LM_EVAL
    )
    _, said = process.communicate()
    assert process.returncode == 1, said
    assert "Traceback" not in said
    last = said.rstrip("\n").split("\n")[-1]
    assert last.startswith("lm_eval: out of memory (")
    assert f"the journal under {tmp_path / 'sweeps'}" in last


def test_a_signal_that_is_ignored_stays_ignored():
    """`nohup` ignores SIGHUP."""
    arm = "from lm_eval_lora_drop.endings import raise_on_signals; raise_on_signals()"
    code = f"import signal; signal.signal(1, signal.SIG_IGN); {arm}; print(signal.getsignal(1))"
    out, said = Forked(["-c", code]).communicate()
    assert out == "1\n", said


@pytest.mark.parametrize("place", ["{text}", "{text}/out", "{locked}", "{long}"])
def test_an_output_path_that_cannot_be_written_is_refused_before_loading(place, lm_eval, tiny_adapter, tmp_path):
    (tmp_path / "text").write_text("a file")
    locked = tmp_path / "locked"
    locked.mkdir()
    # The folder that lm-eval makes in it is named after the adapter: here a file stands in its place.
    (locked / sanitize_model_name(str(tiny_adapter))).write_text("a file")
    path = place.format(text=tmp_path / "text", locked=locked, long=tmp_path / ("x" * 300))
    loads = """
from lm_eval.models.huggingface import HFLM
HFLM._create_model = lambda *_, **__: print("LOADED")
"""
    process = lm_eval("boundary=2", loads + LM_EVAL, "--output_path", path)
    out, said = process.communicate()
    assert process.returncode == 1, said
    assert "LOADED" not in out
    assert "Traceback" not in said
    assert said.rstrip("\n").split("\n")[-1].startswith("lm_eval: --output_path must be a folder that can be written")


def test_lm_eval_while_the_model_is_loaded(lm_eval):
    stop = """
from lm_eval.models.huggingface import HFLM
HFLM._create_model = lambda *_, **__: __import__("os").kill(__import__("os").getpid(), 2)
"""
    process = lm_eval("boundary=2", stop + LM_EVAL)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert said.endswith("\nlm_eval: interrupted. Nothing had begun.\n")


def test_lora_drop_while_it_starts():
    code = """
import os, signal, sys
class Stop:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "lm_eval_lora_drop.commands.view":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Stop)
from lm_eval_lora_drop.commands.main import main
sys.exit(main(["plan", "--discordance", "0.1"]))
"""
    process = Forked(["-c", code])
    out, said = process.communicate()
    assert (process.returncode, out, said) == (130, "", "lora-drop: interrupted. It keeps nothing: start it anew.\n")


def test_judges_are_not_asked_again_for_what_they_have_answered(tmp_path):
    free, asked = threading.Event(), []

    def behaviour(request, _):
        asked.append(request.prompt)
        if len(asked) > 5:
            free.wait(60)
        return Say(score_json(7))

    run = write_judged(tmp_path, [f"text {i}" for i in range(9)], name="x")
    environment = {VARIABLES[name]: key for name, key in KEYS.items()}
    environment["LORA_DROP_JUDGE_CACHE"] = str(tmp_path / "judges.sqlite")
    with JudgeServer(behaviour) as server:
        panel = {"judges": [server.judge("openai")], "concurrency": {"openai": 2}, "timeout": 100.0}
        (tmp_path / "panel.yaml").write_text(yaml.safe_dump(panel))
        command = ["-m", "lm_eval_lora_drop.commands.main", "judge", "rescore", str(run)]
        command += ["--panel", str(tmp_path / "panel.yaml")]
        first = Forked(command, **environment)
        until(lambda: len(asked) == 7, first)  # two wait; a place was free for each, so the five before are stored
        said = interrupted(first)
        assert said == ("lora-drop judge: interrupted. All answers received are cached; the same command resumes.")
        free.set()
        second = Forked(command, **environment)
        out, told = second.communicate()
        assert second.returncode == 0, told
    assert "9 verdicts" in out
    assert [Counter(asked)[prompt] for prompt in asked[:5]] == [1] * 5
    assert len(set(asked)) == 9
    assert len(asked) == 9 + 2
