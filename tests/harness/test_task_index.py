"""Which tasks a manager knows, and that the harness's own are indexed only where one of them is asked for."""

import os

import pytest
import yaml
from lm_eval.tasks import TaskManager

from lm_eval_lora_drop.harness.task_index import _made, task_manager


@pytest.fixture(autouse=True)
def nothing_made_yet():
    _made.clear()
    yield
    _made.clear()


@pytest.fixture
def indexed(monkeypatch):
    """What each manager that is made is told of the harness's tasks."""
    said = []
    before = TaskManager.__init__

    def noting(self, *args, **kwargs):
        said.append(kwargs.get("include_defaults", True))
        before(self, *args, **kwargs)

    monkeypatch.setattr(TaskManager, "__init__", noting)
    return said


def own_task(folder, name):
    folder.mkdir()
    (folder / "mine.yaml").write_text(
        yaml.safe_dump({"task": name, "dataset_path": "json", "output_type": "generate_until"})
    )
    return folder


def test_a_task_of_ours_needs_no_index_of_the_harness_and_one_is_made_once(indexed):
    for _ in range(2):
        manager = task_manager(["lora_drop_demo"], metadata={"test_documents": 3})
        assert "lora_drop_samsum" in manager.all_subtasks
        assert "arc_easy" not in manager.all_subtasks
        assert manager.metadata == {"test_documents": 3}
    assert indexed == [False]
    task_manager(["lora_drop_demo"], metadata={"test_documents": 4})
    assert indexed == [False, False]


def test_a_task_of_the_user_stands_before_ours_and_the_harness_s_in_both(indexed, tmp_path):
    folder = own_task(tmp_path / "tasks", "lora_drop_samsum")
    for names in (["lora_drop_samsum"], ["lora_drop_samsum", "arc_easy"]):
        manager = task_manager(names, folder)
        assert manager.task_index["lora_drop_samsum"].yaml_path == folder / "mine.yaml"
        assert {*names, "lora_drop_gsm8k"} <= set(manager.all_subtasks)
    assert indexed == [False, True]


def test_in_a_notebook_an_edited_task_is_read_again(indexed, tmp_path):
    folder = own_task(tmp_path / "tasks", "first")
    assert "first" in task_manager(["first"], folder).all_subtasks
    (folder / "mine.yaml").write_text((folder / "mine.yaml").read_text().replace("first", "second"))
    os.utime(folder / "mine.yaml", ns=(1, 1))
    known = task_manager(["second"], folder).all_subtasks
    assert "second" in known
    assert "first" not in known
    assert indexed == [False, False]


def test_what_neither_we_nor_the_user_have_is_looked_for_in_the_harness_which_is_indexed_once(indexed):
    for name in ("arc_easy", "mmlu", "no_such_task"):
        manager = task_manager([name])
        assert (name in manager.all_tasks) is (name != "no_such_task")
        assert "lora_drop_demo" in manager.all_subtasks
    assert indexed == [False, True]


def test_a_link_to_nowhere_among_the_user_s_files_is_passed_over(tmp_path):
    folder = own_task(tmp_path / "tasks", "mine")
    (folder / "gone.yaml").symlink_to(tmp_path / "nowhere")
    assert "mine" in task_manager(["mine"], folder).all_subtasks
