"""`lora-drop reproduce`: what it trains on, and a dry run of all of it on the local samples of the benchmarks."""

import json
import shutil

import pytest
import yaml

from lm_eval_lora_drop.commands import main as cli
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import package_folder
from lm_eval_lora_drop.sweep.documents import draws_from
from lm_eval_lora_drop.train.documents import choose_documents
from lm_eval_lora_drop.train.examples import load_binding
from lm_eval_lora_drop.train.settings import TaskSettings
from testing.tiny import make_base
from tests.conftest import ROOT

STUDIES = package_folder("configs") / "studies"
TASKS = str(STUDIES / "paper_tasks")
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture
def benchmarks():
    if not SHARED.is_dir():
        pytest.skip("no local samples of the benchmarks in ../shared/data")
    return SHARED


def task(name, folder, **metadata):
    asked = TaskSettings(task=name, include_path=TASKS, metadata={"data_dir": str(folder), **metadata})
    return load_binding(asked).task


def ecommerce(folder, benchmarks):
    """The authors' layout with a train file, here the sample of their dev file under other words."""
    shutil.copytree(benchmarks / "ecommerce", folder)
    rows = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    for row in rows:
        row["utterances"][0] += " 训练"
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_wmt22_is_cut_once_into_training_and_validation(benchmarks):
    found = task("paper_wmt23", benchmarks)
    train, validation = list(found.training_docs()), list(found.validation_docs())
    assert (len(train), len(validation)) == (1535, 502)
    assert draws_from(found) == "validation"
    rows = [json.loads(line) for line in (benchmarks / "wmt_en_zh" / "wmt22_test_as_validation.jsonl").open()]
    assert [one["source"] for one in train + validation] == [row["source"] for row in rows]
    assert validation[0]["source"].startswith("Free Training"), "a document begins at the cut, with its title"


def test_a_training_on_wmt22_reads_nothing_that_sweep_or_test_read(benchmarks):
    """News agencies repeat themselves: some sentences stand on both sides of the cut."""
    asked = TaskSettings(task="paper_wmt23", include_path=TASKS, metadata={"data_dir": str(benchmarks)})
    binding = load_binding(asked)
    read = {one["source"] for split in (binding.task.validation_docs(), binding.task.test_docs()) for one in split}
    assert any(one["source"] in read for one in binding.task.training_docs()), "the case that is tested"
    chosen = choose_documents(binding, limit=None, seed=0, hold_out=200)
    assert len(chosen.chosen) > 1300
    assert not {doc["source"] for _, doc in chosen.chosen} & read


def test_a_part_of_wmt22_is_not_cut(benchmarks, tmp_path):
    """The cut is a place in the whole test set: elsewhere in a part of it, it would split a document."""
    shutil.copytree(benchmarks / "wmt_en_zh", tmp_path / "wmt_en_zh")
    file = tmp_path / "wmt_en_zh" / "wmt22_test_as_validation.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2000]))
    with pytest.raises(ArgumentError, match="must have its 2037 segments to be cut between two documents, got 2000"):
        task("paper_wmt23", tmp_path)


def test_ecommerce_is_trained_on_the_authors_train_file(benchmarks, tmp_path):
    found = task("paper_ecommerce", ecommerce(tmp_path / "ecommerce", benchmarks), labels="english")
    train = list(found.training_docs())
    assert sum(one["label"] for one in train) * 2 == len(train) == 154
    assert found.doc_to_target(train[0]).strip() in ("Yes", "No")


def test_the_dry_run_of_the_papers_study(benchmarks, tmp_path, capsys):
    """With a model of as many layers and the samples of its data: 70 trainings, nothing refused, hours by the rates in
    the file."""
    config = yaml.safe_load((STUDIES / "paper.yaml").read_text())
    config["model_args"]["pretrained"] = str(make_base(tmp_path / "base", num_layers=32))
    config["include_path"] = TASKS
    config["output"] = str(tmp_path / "out")
    for entry in config["tasks"].values():
        entry.setdefault("metadata", {})["data_dir"] = str(benchmarks)
    config["tasks"]["ecommerce"]["metadata"]["data_dir"] = str(ecommerce(tmp_path / "ecommerce", benchmarks))
    file = tmp_path / "paper.yaml"
    file.write_text(yaml.safe_dump(config))
    assert cli.main(["study", "--config", str(file), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "70 trainings, 0 done, about" in said
    assert "(10.0 documents per second, training_rate)" in said
    assert said.count("to do  training") == 70
    assert not (tmp_path / "out").exists()


def test_the_shipped_study_names_what_is_missing_here(capsys, tmp_path):
    """Offline: the base model, four data sets on the Hub and the authors' archive, each by name, none trained."""
    assert cli.main(["reproduce", "--dry-run", "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    for name in (
        "model_args: model=meta-llama",
        *(f"tasks.{one}: " for one in ("gsm8k", "samsum", "wmt23", "ecommerce")),
    ):
        assert name in said
    assert "has no training split" not in said
