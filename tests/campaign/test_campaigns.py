"""Attacks, small and seeded; `make campaign` runs them at length."""

import functools
import json
import random
import re
import shlex
import shutil

import pytest

from lm_eval_lora_drop.errors import LoraDropError
from lm_eval_lora_drop.files import read_text, write_atomically
from lm_eval_lora_drop.judge.panel import load_panel
from lm_eval_lora_drop.judge.redact import Redactor
from lm_eval_lora_drop.record.schema import KEY, from_config
from lm_eval_lora_drop.show.report.leaderboard_text import plain_cell
from lm_eval_lora_drop.study.config import read_study
from lm_eval_lora_drop.text import visible
from lm_eval_lora_drop.train.settings import read_settings
from testing.doubles import make_documents, questions
from testing.forked import Forked
from testing.run_files import swept, write_run
from testing.toy import make_task
from tests.campaign import SCALE, commands, fuzz, reports, sweeps
from tests.campaign.judge_vendor import forms
from tests.campaign.judges import holds


@pytest.mark.parametrize("name", fuzz.PARSERS)
def test_damaged_inputs_raise_our_errors_only(name):
    fuzz.trial(functools.partial(fuzz.attempt, name), 30 * SCALE, seed=7)()


BRACKETS = b"[" * 5000


@pytest.mark.parametrize("content", [fuzz.BOMB.encode(), BRACKETS, b"a:\n" + b"- " * 3000, b'a: "\\ud83d"'])
def test_files_that_failed_once(content, tmp_path):
    """A bomb of YAML aliases, brackets and lists by the thousand, half a character."""
    file = tmp_path / "file.yaml"
    file.write_bytes(content)
    for read in (load_panel, read_study):
        with pytest.raises(LoraDropError):
            read(file)
    run = write_run(tmp_path / "run", {"acc": [0.0, 1.0]}, lora_drop=swept())
    next(run.parent.glob("samples_*")).write_bytes(BRACKETS)
    fuzz.read_runs(tmp_path)


def test_values_that_failed_once(tmp_path):
    entry = swept()
    entry["tasks"]["t"]["metric"]["range"] = float("inf")
    with pytest.raises(LoraDropError, match="range"):
        from_config({KEY: entry}, tmp_path)
    for name in ("learning_rate", "rank", "epochs"):
        for value in ("+".join(map(str, range(3000))), "\ud83d"):
            with pytest.raises(LoraDropError, match=f"{name} must be"):
                read_settings({name: value}, "f")


def test_killed_sweeps_give_the_same_table(tmp_path):
    task = make_task(splits=questions(validation=20, test=20))
    documents = make_documents(task)
    for strategy in ("exhaustive", "racing"):
        for name in ("whole", "killed"):
            (tmp_path / f"{strategy}-{name}").mkdir()
        whole = sweeps.sweep(task, documents, tmp_path / f"{strategy}-whole", strategy, 0.0)
        folder, draw = tmp_path / f"{strategy}-killed", random.Random(1)
        kills = sum(sweeps.killed(task, documents, folder, strategy, draw) for _ in range(3 * SCALE))
        assert sweeps.sweep(task, documents, folder, strategy, 0.0) == whole
        asked = (folder / "asked.txt").read_text().split("\n")[:-1]
        assert len(asked) - len(set(asked)) <= kills * sweeps.BATCH * 7


def test_kills_and_faults_lose_no_verdict_and_pay_for_none_twice(tmp_path):
    process = Forked(["-m", "tests.campaign.judges", str(tmp_path), str(240 * SCALE), str(4 * SCALE)])
    out, said = process.communicate()
    assert process.returncode == 0, said
    found = json.loads(out.split("\n")[-2])
    assert not any(found["wrong"].values()), found
    assert found["faulty"] > 60
    assert found["killed"] >= 2


PLANTED = "sk-planted+key/with=signs&more"


@pytest.mark.parametrize("text", [*forms(PLANTED).split(" ")[:3], f"x{PLANTED[4:12]}y"])
def test_the_search_for_keys_finds_what_it_is_for(text):
    assert holds(text.encode(), PLANTED)
    assert not holds(Redactor([PLANTED]).message(text).encode(), PLANTED)
    assert not holds(PLANTED[4:11].encode(), PLANTED)


def test_reports_over_bad_runs_are_complete():
    fuzz.trial(reports.one_report, 4 * SCALE, seed=3)()


NAMED = ("base", "adapter", "run", "runs", "unswept", "samples", "out", "empty", "text", "pipe", "task")


def test_the_commands_are_many_and_the_rule_finds_what_it_is_for():
    where = dict.fromkeys(NAMED, "x")
    found = commands.commands(where)
    assert len({shlex.join(words) for words, _ in found}) >= 250
    assert all(names for _, names in found)
    assert not any("ARGUMENT" in word for words, _ in found for word in words)
    assert commands.wrong(1, "lora-drop: layers must be x", 1.0, "layers") is None
    for code, said, cpu in [
        (0, "layers", 1.0),
        (-9, "layers", 1.0),
        (1, "Traceback (most recent call last)\nlayers", 1.0),
        (1, "a\nb\nc\nlayers", 1.0),
        (1, "something went wrong", 1.0),
        (1, "layers", 99.0),
    ]:
        assert commands.wrong(code, said, cpu, "layers") is not None


# What was answered by a traceback, somebody else's exception, an empty table or after the model had been loaded.
ONCE_UNCLEAR = (
    *(",K=3 ", ",k=3 ", ",lora_boundary=3 ", ",limit=3 ", ",metric=acc ", ",adapter=x ", ",lora=x "),
    *(r"model_args peft=\S+ --tasks", ",boundary=-1 ", "-1\\.0}", r"\[0, 2\]", "sweep_metric=zzz"),
    *("data_dir=/nope", "probe .*--task nope", "probe .*--include_path /nope", "stability .*--task nope"),
    *("leaderboard .*--metric zzz", "export .*--dtype float15", "sweep_boundaries=0-30000000", "~nosuchuser"),
    *("--seed x", "view .*--port 9", "reproduce --tasks nope", "judge collect", "--threads 0"),
)


def test_bad_commands_are_answered_clearly(tiny_base, tiny_adapter, tmp_path):
    where = dict.fromkeys(NAMED, "x")
    all_of_them = [shlex.join(words) for words, _ in commands.commands(where)]
    assert [one for one in ONCE_UNCLEAR if not any(re.search(one, command) for command in all_of_them)] == []
    shutil.copytree(tiny_base, tmp_path / "base")
    shutil.copytree(tiny_adapter, tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(tiny_base), str(tmp_path / "base")))
    some = ["|".join(ONCE_UNCLEAR), "4"] if SCALE == 1 else []
    process = Forked(["-m", "tests.campaign.commands", str(tmp_path), *some])
    out, said = process.communicate()
    assert process.returncode == 0, out + said
    assert int(out.split("\n")[-2].split(" ")[0]) > len(ONCE_UNCLEAR)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "a" / "b.txt"
    write_atomically(file, "first")
    with pytest.raises(LoraDropError, match="cannot be written"):
        write_atomically(file / "c", "second")
    with pytest.raises(LoraDropError, match="folder, pipe or device"):
        write_atomically(tmp_path / "a", "second")
    assert file.read_text() == "first"
    assert [path.name for path in file.parent.iterdir()] == ["b.txt"]
    with pytest.raises(LoraDropError, match="folder, pipe or device"):
        read_text(tmp_path, "a study")


def test_a_full_disk_leaves_what_was_there(tmp_path, small_disk):
    file = tmp_path / "b.txt"
    write_atomically(file, "first")
    with small_disk(1000), pytest.raises(LoraDropError, match="cannot be written"):
        write_atomically(file, "x" * 100_000)
    assert file.read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["b.txt"]


def test_texts_of_runs_neither_steer_nor_reorder_nor_calculate():
    assert visible("a\u202eb\x1b[2J\n\u200fc") == "a\\u202eb\\u001b[2J\n\u200fc"
    assert [plain_cell(text) for text in ("=1+1", " =1", "-2", "@x", "a=1")] == ["'=1+1", "' =1", "'-2", "'@x", "a=1"]
