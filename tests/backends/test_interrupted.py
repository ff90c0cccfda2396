"""Killed, torn, moved: the journal serves the next run, and several processes agree with one."""

import json
import signal
import socket
from pathlib import Path

import pytest

from testing.forked import Forked

ROOT = Path(__file__).parents[2]
MODULE = "testing.evaluate_toy"
SETTINGS = {"TOKENIZERS_PARALLELISM": "false", "ACCELERATE_USE_CPU": "true"}
PAIRS = 10 * 5  # validation documents x boundaries
CHECKED = 2 * 2  # of these the check before the shared pass has answered, two documents under two candidates


def program_in(folder, base, adapter):
    """Runs the toy evaluation; returns what each rank wrote and what became of the processes.

    `places` are the RANK and LOCAL_RANK of each of several processes, as torchrun tells them.
    """

    def run(name, *, places=((0, 0),), sweep_dir="sweeps", **settings):
        model_args = {
            "pretrained": str(base),
            "peft": str(adapter),
            "sweep_limit": 10,
            "evaluate": "chosen",
            "sweep_dir": str(folder / sweep_dir),
            **settings.pop("model_args", {}),
        }
        output = folder / name
        words = ["-m", MODULE, json.dumps({"model_args": model_args, "output": str(output), **settings})]
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(len(places))}
        several = [{**group, "RANK": str(rank), "LOCAL_RANK": str(local)} for rank, local in places]
        processes = [Forked(words, **SETTINGS, **(one if len(places) > 1 else {})) for one in several]
        said = [process.communicate()[1] for process in processes]
        ended = [(process.returncode, text) for process, text in zip(processes, said, strict=True)]
        files = [Path(f"{output}.{rank}.json") for rank, _ in places]
        return [json.loads(file.read_text()) if file.exists() else None for file in files], ended

    return run


@pytest.fixture
def program(tiny_base, tiny_adapter, tmp_path):
    return program_in(tmp_path, tiny_base, tiny_adapter)


@pytest.fixture(scope="module")
def undisturbed(tiny_base, tiny_adapter, tmp_path_factory):
    """What one process finds that nobody kills, and its journal."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (found,), _ = program_in(folder, tiny_base, tiny_adapter)("one")
    assert found["answered"] == PAIRS - CHECKED
    (journal,) = (folder / "sweeps").glob("*.jsonl")
    return found, journal


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def same(found, expected):
    """The same choice, the same table, the same answers; the time it took and where it was written may differ."""
    for name, entry in expected["tasks"].items():
        assert compared(found["tasks"][name]) == compared(entry)
    assert found["results"] == expected["results"]
    assert found["samples"] == expected["samples"]


def compared(entry):
    # Where all answers came from the journal nothing was run, and nothing checked. What is answered again takes
    # another time.
    sweep = {k: v for k, v in entry["sweep"].items() if k not in ("engine", "check", "seconds_per_pair")}
    return {k: v for k, v in entry.items() if k not in ("seconds", "journal", "sweep")} | {"sweep": sweep}


def test_a_killed_sweep_goes_on_where_it_was(program, undisturbed):
    # Few rows a batch, or the shared pass would be done after its first.
    model_args = {"sweep_engine": "shared", "sweep_batch_size": 10}
    (nothing,), ((code, _),) = program("killed", model_args=model_args, kill_after=17)
    assert code == -signal.SIGKILL
    assert nothing is None
    (resumed,), _ = program("resumed", model_args=model_args)
    assert 0 < resumed["answered"] <= PAIRS - 17
    same(resumed, undisturbed[0])
    (again,), _ = program("again", model_args=model_args)
    assert again["answered"] == 0
    same(again, undisturbed[0])


def test_a_journal_renamed_to_look_like_ours_is_refused(program, undisturbed, tiny_base, tmp_path):
    from testing.tiny import make_adapter

    other = make_adapter(tiny_base, tmp_path / "other", seed=7)
    program("theirs", model_args={"peft": str(other)}, sweep_dir="elsewhere")
    (theirs,) = (tmp_path / "elsewhere").glob("*.jsonl")
    (tmp_path / "sweeps").mkdir()
    theirs.rename(tmp_path / "sweeps" / undisturbed[1].name)
    (refused,), ((_, said),) = program("refused")
    assert refused is None
    assert "adapter" in said.splitlines()[-1]


def test_two_machines_agree_with_one_and_share_the_work(program, undisturbed):
    """Each process is the first one of its machine."""
    two, ended = program("two", places=((0, 0), (1, 0)))
    assert [code for code, _ in ended] == [0, 0], ended
    same(two[0], undisturbed[0])
    assert [rank["answered"] for rank in two] == [(PAIRS - CHECKED) // 2] * 2
    assert [rank["requests"] for rank in two] == [3, 3]


def test_one_process_killed_ends_the_other_and_the_journal_serves_the_next_run(program, undisturbed):
    model_args = {"sweep_batch_size": 5}
    ranks, ((code, said), (killed, _)) = program(
        "killed", model_args=model_args, places=((0, 0), (1, 1)), kill_after=9, kill_rank=1
    )
    assert killed == -signal.SIGKILL
    assert code == 1
    assert ranks == [None, None]
    assert "lost the others" in said
    (resumed,), _ = program("resumed", model_args=model_args)
    assert resumed["answered"] <= PAIRS - 9
    same(resumed, undisturbed[0])


TESTED = 6 * 3
"""Test documents x variants."""


def test_a_test_split_killed_under_one_variant_goes_on_where_it_was(program):
    model_args = {
        "boundary": "2",
        "evaluate": "chosen+full+base",
        "sweep_engine": "shared",
        "sweep_batch_size": 3,
    }
    (undisturbed,), _ = program("undisturbed", model_args=model_args, sweep_dir="other")
    assert undisturbed["answered"] == TESTED - CHECKED
    (nothing,), ((code, _),) = program("killed", model_args=model_args, kill_after=5)
    assert code == -signal.SIGKILL
    assert nothing is None
    (resumed,), _ = program("resumed", model_args=model_args)
    assert 0 < resumed["answered"] <= undisturbed["answered"] - 5
    (again,), _ = program("again", model_args=model_args)
    assert again["answered"] == 0
    for found in (resumed, again):
        assert found["samples"] == undisturbed["samples"]
        one, other = (run["tasks"]["toy0"]["evaluated"] for run in (found, undisturbed))
        assert {**one, "engine": ""} == {**other, "engine": ""}


def test_two_processes_evaluate_the_test_split_as_one(program):
    # Five documents over two processes: the harness pads one of them.
    model_args = {"boundary": "2", "evaluate": "chosen+full+base", "sweep_engine": "shared"}
    (one,), _ = program("one", model_args=model_args, sweep_dir="one", tasks=2, limit=5)
    two, ended = program("two", places=((0, 0), (1, 1)), model_args=model_args, sweep_dir="two", tasks=2, limit=5)
    assert [code for code, _ in ended] == [0, 0], ended
    # The harness appends what it asked again to fill the last batch.
    asked_once = [
        {
            task: [{**row, "resps": [found[:1] for found in row["resps"]]} for row in rows]
            for task, rows in run["samples"].items()
        }
        for run in (two[0], one)
    ]
    assert asked_once[0] == asked_once[1]
    for task in ("toy0", "toy1"):
        assert two[0]["tasks"][task]["evaluated"] == one["tasks"][task]["evaluated"]
        assert one["tasks"][task]["evaluated"]["doc_ids"] == [0, 1, 2, 3, 4]
