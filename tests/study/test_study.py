"""A whole study on a tiny model: trained, evaluated as ordinary runs, resumed, refused before anything is trained."""

import re
import shutil
import time

import lm_eval
import pytest
from filelock import FileLock
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from lm_eval_lora_drop.backends.hf import LoraDropLM
from lm_eval_lora_drop.commands import main as cli
from lm_eval_lora_drop.files import package_folder
from lm_eval_lora_drop.record.find import find_runs
from lm_eval_lora_drop.record.fingerprint import digest, short
from lm_eval_lora_drop.study.check import check_study
from lm_eval_lora_drop.study.config import read_study
from lm_eval_lora_drop.study.plan import cell_folder, plan, read_cell
from lm_eval_lora_drop.study.trainings import adapter_folder
from lm_eval_lora_drop.text import duration_text
from testing.forked import Forked
from testing.studies import METADATA, study_of, table_of, write_study
from testing.toy import write_task
from tests.conftest import ROOT


@pytest.fixture
def file(tmp_path, tiny_base):
    trainings = {"full": {"seeds": [0, 1]}, "bottom": {"layers": "paper", "choices": ["full"]}}
    config = study_of(tiny_base, tmp_path, trainings=trainings, choices=["full", "base", "auto", "layers=1+3"])
    return lambda **changes: write_study(tmp_path, {**config, **changes})


def scores(path):
    return table_of(read_study(path).output)


def test_a_study_from_training_to_table(file, capsys):
    """Three adapters, eight cells (base once), each an ordinary run; a second call runs nothing; a cell or an adapter
    that is lost is made again and the table is the same."""
    path = file()
    study = read_study(path)
    assert cli.main(["study", "--config", str(path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.count("to do  training") == 3
    assert "8 cells, 0 done" in said
    assert not study.output.exists()

    assert cli.main(["study", "--config", str(path)]) == 0
    assert re.search(
        r"^problems.*layers=1\+3 is better than the full adapter \(full\): ", capsys.readouterr().out, re.M
    )
    runs, issues = find_runs([study.output])
    assert not issues
    assert len(runs) == 8
    before = scores(path)
    assert [(one["training"], one["seed"], one["choice"]) for one in before] == [
        ("full", 0, "boundary=full"), ("full", 0, "boundary=base"), ("full", 0, "boundary=auto"),
        ("full", 0, "layers=1+3"),
        ("bottom", 0, "boundary=full"),
        ("full", 1, "boundary=full"), ("full", 1, "boundary=auto"), ("full", 1, "layers=1+3"),
    ]  # fmt: skip
    done = check_study(study, train=True)
    assert (str(done.trainings), str(done.cells)) == ("3 trainings, 3 done", "8 cells, 8 done")

    stamps = {
        one: one.stat().st_mtime_ns
        for folder in ("adapters", "cells")
        for one in (study.output / folder).rglob("*")
        if one.is_file()
    }
    assert cli.main(["study", "--config", str(path)]) == 0
    assert {one: one.stat().st_mtime_ns for one in stamps} == stamps

    shutil.rmtree(adapter_folder(study, study.trainings[0]))
    cells = [cell for _, group in plan(study) for cell in group]
    for cell in cells[:2]:
        shutil.rmtree(cell_folder(study, cell))
    assert cli.main(["study", "--config", str(path)]) == 0
    assert scores(path) == before


def test_what_was_answered_is_not_asked_again(file, monkeypatch):
    """Two choices that keep the same of one adapter ask the model once; one that keeps less asks it again."""
    asked = []
    answer = LoraDropLM._answer

    def counted(self, request_type, requests, kept, disable_tqdm):
        asked.append((str(kept), len(requests)))
        return answer(self, request_type, requests, kept, disable_tqdm)

    monkeypatch.setattr(LoraDropLM, "_answer", counted)
    path = file(trainings={"full": {}}, choices=["full", "layers=0-3", "layers=0-2"])
    assert cli.main(["study", "--config", str(path)]) == 0
    assert asked == [("0-3", 5), ("0-2", 5)]
    runs, _ = find_runs([read_study(path).output])
    full, same, _ = ([sample.raw for sample in run.tasks["lora_drop_demo"].samples()] for run in runs)
    assert same == full


def test_killed_and_started_again(file, tmp_path):
    """Killed by the kernel while a checkpoint is written, in a sweep and in a cell, and started again each time, the
    study ends with the table of one that was never killed."""
    path = file(trainings={"full": {}}, choices=["full", "auto"])
    whole = tmp_path / "whole"
    assert cli.main(["study", "--config", str(path), "--output", str(whole)]) == 0
    out = read_study(path).output
    # Each pattern names a file that a study makes on its way; the kill comes as soon as there is one.
    for pattern in ("checkpoint-*/*", "cells/*/*/*", "cells/*auto*"):
        shutil.rmtree(tmp_path / "sweeps", ignore_errors=True)
        said = tmp_path / f"said {pattern[:5]}.txt"
        command = ["-m", "lm_eval_lora_drop.commands.main", "study", "--config", str(path), "--threads", "1"]
        process = Forked(command, said=said)
        while process.poll() is None and not any(out.rglob(pattern)):
            time.sleep(0.01)
        process.kill()
        process.wait()
        if pattern == "checkpoint-*/*":  # what it is at stands on the terminal
            assert "] training problems-full-seed0\n" in said.read_text()
    assert cli.main(["study", "--config", str(path)]) == 0
    assert table_of(out) == table_of(whole)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_base):
    """The file of a study of one training and one cell that has run."""
    folder = tmp_path_factory.mktemp("finished")
    path = write_study(folder, study_of(tiny_base, folder, trainings={"full": {}}, choices=["full"]))
    assert cli.main(["study", "--config", str(path)]) == 0
    return path


def test_what_a_kill_left_is_cleared_away(finished, tmp_path):
    """Killed after a cell's results were written and before it was done, the cell has one run, not two; killed after
    an adapter was complete and before its checkpoints were removed, they are removed by the next command."""
    study = read_study(finished, shutil.copytree(read_study(finished).output, tmp_path / "killed"))
    ((training, (cell,)),) = plan(study)
    done = cell_folder(study, cell) / "cell.json"
    done.unlink()
    checkpoints = adapter_folder(study, training) / "checkpoints"
    (checkpoints / "checkpoint-2").mkdir(parents=True)
    (checkpoints / "checkpoint-2" / "optimizer.pt").write_bytes(b"x")
    (checkpoints.parent / "started.json").write_text("{}")
    before = (checkpoints.parent / "training.json").read_text()
    assert cli.main(["study", "--config", str(finished), "--output", str(study.output)]) == 0
    assert done.is_file()
    assert len(list(cell_folder(study, cell).rglob("results_*.json"))) == 1
    assert not checkpoints.exists()
    assert not (checkpoints.parent / "started.json").exists()
    assert (checkpoints.parent / "training.json").read_text() == before


def test_a_full_cell_is_what_hf_says(finished):
    """The trained adapter, whole, evaluated by the harness's own `hf` on the same task: the same outputs."""
    study = read_study(finished)
    ((training, (cell,)),) = plan(study)
    (run,), _ = find_runs([cell_folder(study, cell)])
    model = HFLM(
        study.model_args["pretrained"],
        peft=str(adapter_folder(study, training)),
        device="cpu",
        dtype="float32",
        batch_size=4,
    )
    want = lm_eval.simple_evaluate(
        model=model,
        tasks=["lora_drop_demo"],
        task_manager=TaskManager(include_path=str(ROOT / "tasks"), include_defaults=False, metadata=METADATA),
        **study.tasks[0].evaluation,
    )
    got = [sample.raw for sample in run.tasks["lora_drop_demo"].samples()]
    assert got == [sample["resps"][0][0] for sample in want["samples"]["lora_drop_demo"]]
    entry = read_cell(study, cell)
    assert entry["scores"]["exact_match,strict-match"] == want["results"]["lora_drop_demo"]["exact_match,strict-match"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainigs": {}}, "Did you mean trainings?"),
        ({"trainings": {"full": {"rnk": 4}}}, "Did you mean rank?"),
        ({"trainings": {"full": {"rank": 0}}}, "rank must be an integer of at least 1, got 0"),
        ({"trainings": {"full": {"seeds": []}}}, "seeds must be a non-empty list, each an integer"),
        ({"trainings": {"full": {"seeds": 3}}}, "seeds must be a non-empty list, each an integer of at least 0, got"),
        ({"trainings": {"full": {"seed": 3}}}, "must say seeds"),
        ({"trainings": {"full": {"tasks": ["problem"]}}}, "Did you mean problems?"),
        ({"trainings": {}}, "must have tasks, and trainings or adapters"),
        ({"choices": ["ful"]}, "Did you mean boundary=full?"),
        ({"choices": []}, "choices must not be empty"),
        ({"tasks": {}}, "must have tasks, and trainings"),
        ({"tasks": {"problems": {"evaluations": {}}}}, "Did you mean evaluation?"),
        (
            {"tasks": {"problems": {"task": "lora_drop_demo", "evaluation": {"limit": "many"}}}},
            "evaluation.limit must be",
        ),
        ({"choices": ["sweep_candidates=windw"]}, "Did you mean sweep_candidates=window"),
        ({"model_args": {"pretrained": "m", "sweep_limt": 3}}, "Did you mean sweep_limit"),
        ({"model_args": {"pretrained": "m", "sweep_select": "smallest:99"}}, "a bound must be"),
        ({"model_args": {}}, "must name the base model"),
        ({"model_args": {"pretrained": "x", "boundary": 3}}, "must not have boundary"),
        ({"tasks": ["lora_drop_dmo"]}, "is not known"),
        ({"tasks": ["lora_drop_all"]}, "is a group"),
        ({"model_args": {"pretrained": "/nope"}}, "there is no folder /nope"),
        ({"model_args": {"pretrained": "no-such-owner/no-such-model"}}, "model=no-such-owner/no-such-model cannot"),
        ({"adapters": ["/nope/adapter"]}, "/nope/adapter"),
        ({"trainings": {"full": {}, "low": {"layers": "0-9"}}}, "trainings.low: layers must lie in 0..3"),
        ({"trainings": {"full": {}, "few": {"target_modules": ["nope"]}}}, "trainings.few: target_modules must name"),
        ({"choices": ["full", "layers=2-9"]}, "choices: layers must lie in 0..3"),
        ({"choices": ["full", 9]}, "choices: boundary must be an integer from 0 to 4"),
        ({"metrics": ["exact"]}, "tasks.problems.metrics: sweep_metric must name a metric of task lora_drop_demo"),
    ],
)
def test_wrong_studies_are_named_before_anything_is_trained(changes, message, file, capsys):
    """By the dry run, which checks with the same function as the real one."""
    path = file(**changes)
    assert cli.main(["study", "--config", str(path), "--dry-run"]) == 1
    said = [line for line in capsys.readouterr().err.split("\n") if line.startswith("lora-drop study: ")]
    assert len(said) == 1
    assert message in said[0]
    assert not list(path.parent.glob("out/adapters/*"))


def test_everything_that_is_wrong_is_named_at_once(file, capsys):
    changes = {"tasks": ["lora_drop_dmo", "lora_drop_wrong"], "adapters": ["/nope/adapter"]}
    path = file(**changes)
    for more in (["--dry-run"], []):
        assert cli.main(["study", "--config", str(path), *more]) == 1
        said = capsys.readouterr().err
        assert all(word in said for word in ("lora_drop_dmo", "lora_drop_wrong", "/nope/adapter"))
    assert not (path.parent / "out").exists()


def test_the_time_of_what_is_left(file, capsys):
    """Before anything has finished by the rates in the file, afterwards by what was measured."""
    rates = {"training_rate": 0.01, "evaluation_rate": 0.02}
    path = file(trainings={"full": {"seeds": [0, 1]}}, choices=["full", 3], **rates)
    assert cli.main(["study", "--config", str(path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    # 2 trainings of 8 documents, 4 cells of 5.
    assert (
        f"2 trainings, 0 done, about {duration_text(16 / 0.01)} left (0.0100 documents per second, training_rate)"
        in said
    )
    assert (
        f"4 cells, 0 done, about {duration_text(20 / 0.02)} left (0.0200 documents per second, evaluation_rate)" in said
    )
    assert cli.main(["study", "--config", str(path)]) == 0
    again = file(trainings={"full": {"seeds": [0, 1, 2]}}, choices=["full", 3], **rates)
    capsys.readouterr()
    assert cli.main(["study", "--config", str(again), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"3 trainings, 2 done, about .* left \(.* documents per second, measured\)", said)
    assert re.search(r"6 cells, 4 done, about .* left \(.* documents per second, measured\)", said)
    unknown = file(trainings={"other": {}}, choices=["full"], output=str(path.parent / "else"))
    assert cli.main(["study", "--config", str(unknown), "--dry-run"]) == 0
    assert "1 trainings, 0 done, time unknown (none has finished; training_rate in" in capsys.readouterr().out


def test_controls_of_equal_size(file):
    """Beside each fixed K the upper K layers and random sets of K, other ones for each seed; none for a K that is
    swept, or where nothing or everything is kept."""
    study = read_study(
        file(trainings={"full": {"seeds": [0, 1]}}, choices=["full", "base", "auto", 2, 0, 4], controls=2)
    )
    found = [[cell.choice for cell in unit.cells if cell.choice.control] for unit in plan(study)]
    for controls in found:
        upper, *drawn = controls
        assert (upper.label, str(upper.spec)) == ("upper 2 layers", "layers=2-3")
        assert [one.label for one in drawn] == ["random 2 layers"] * 2
        sets = {one.spec.resolve(4).kept_layers for one in drawn}
        assert len(sets) == 2
        assert all(len(one) == 2 and set(one) not in ({0, 1}, {2, 3}) for one in sets)
    assert found == [[cell.choice for cell in unit.cells if cell.choice.control] for unit in plan(study)]
    wide = read_study(file(trainings={"full": {"seeds": [0, 1, 2, 3, 4, 5]}}, choices=["default"], controls=1))
    assert len({unit.cells[-1].choice for unit in plan(wide)}) > 1
    # Of one layer of four there are two sets that are neither the bottom nor the upper one.
    few = read_study(file(trainings={"full": {}}, choices=[1], controls=9))
    ((_, cells),) = plan(few)
    assert sorted(str(cell.choice.spec) for cell in cells) == ["boundary=1", "layers=1", "layers=2", "layers=3"]


def test_a_plan_without_its_base_model(file, capsys):
    """A dry run names the cells all the same, and what it cannot run."""
    path = file(model_args={"pretrained": "no-such-owner/no-such-model"})
    assert cli.main(["study", "--config", str(path), "--dry-run"]) == 1
    said = capsys.readouterr()
    assert "8 cells, 0 done" in said.out
    assert "model_args: model=no-such-owner/no-such-model cannot be loaded" in said.err


def test_a_task_without_training_split(file, tmp_path, capsys):
    write_task(tmp_path / "tasks", "bare", {"test": [{"question": "a", "answer": "b"}]})
    path = file(tasks=["bare"], include_path=str(tmp_path / "tasks"))
    assert cli.main(["study", "--config", str(path)]) == 1
    assert "has no training split" in capsys.readouterr().err


def test_two_processes_share_a_study(file, tmp_path):
    """Started twice at once: each unit is done by one of them, and the table is that of one process alone."""
    path = file(trainings={"full": {"seeds": [0, 1, 2]}}, choices=["full"])
    alone = tmp_path / "alone"
    assert cli.main(["study", "--config", str(path), "--output", str(alone)]) == 0
    command = ["-m", "lm_eval_lora_drop.commands.main", "study", "--config", str(path), "--threads", "1"]
    said = [tmp_path / f"said{number}.txt" for number in range(2)]
    processes = [Forked(command, said=one) for one in said]
    assert [process.wait() for process in processes] == [0, 0], [one.read_text() for one in said]
    begun = re.findall(r"\] training (\S+)\n", "".join(one.read_text() for one in said))
    assert sorted(begun) == [f"problems-full-seed{seed}" for seed in range(3)]
    assert cli.main(["study", "--config", str(path), "--only", "report"]) == 0
    assert table_of(read_study(path).output) == table_of(alone)


def test_a_unit_that_another_process_has_is_left_to_it(file):
    path = file(trainings={"full": {"seeds": [0, 1]}}, choices=["full"])
    study = read_study(path)
    first, second = plan(study)
    locks = study.output / ".locks"
    locks.mkdir(parents=True)
    with FileLock(locks / f"{short(digest(first.name), 16)}.lock"):
        assert cli.main(["study", "--config", str(path)]) == 0
    assert read_cell(study, first.cells[0]) is None
    assert read_cell(study, second.cells[0]) is not None
    assert cli.main(["study", "--config", str(path)]) == 0
    assert read_cell(study, first.cells[0]) is not None


def test_an_adapter_trained_otherwise_is_not_taken(finished, file, capsys):
    other = file(trainings={"full": {"rank": 2}}, choices=["full"])
    assert cli.main(["study", "--config", str(other), "--output", str(read_study(finished).output)]) == 1
    assert "was trained with lora_alpha=16.0, rank=8, and" in capsys.readouterr().err


def test_the_studies_of_the_evidence_can_be_read():
    """Word problems on two models under three seeds, with controls; short dialogues with further trainings."""
    studies = package_folder("configs") / "studies"
    for name, fixed in (("smollm2", "19"), ("gemma3", "11")):
        study = read_study(studies / f"{name}.yaml")
        assert [one.folder for one in study.trainings] == [f"problems-full-seed{seed}" for seed in range(3)]
        assert [choice.label for choice in study.trainings[0].choices] == ["full", "base", "auto", fixed]
        assert study.controls == 1
    dialogues = read_study(studies / "samsum.yaml").trainings
    names = [one.folder for one in dialogues]
    assert len(names) == len(set(names)) == 10
    assert {f"samsum-{name}-seed{seed}" for name in ("full", "bottom") for seed in range(3)} <= set(names)
    assert {one.settings.rank for one in dialogues} == {2, 8, 32}
    assert {one.settings.describe_layers(30) for one in dialogues if one.name == "bottom"} == {"0-18 of 30"}
