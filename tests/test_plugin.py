import importlib.metadata
import subprocess
import sys

import pytest

from lm_eval_lora_drop.files import package_folder
from lm_eval_lora_drop.plugin import MODEL_TYPES


def python(code, *flags):
    return subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_harness_knows_the_model_types_and_tasks_without_being_told():
    out = python(
        "from lm_eval.api.registry import model_registry; import lm_eval.models\n"
        "from lm_eval.tasks import TaskManager\n"
        "print([n for n in model_registry.keys() if 'lora-drop' in n])\n"
        "print(*['lora_drop_samsum' in TaskManager(include_defaults=d).all_tasks for d in (True, False)])"
    )
    models, tasks = out.splitlines()[-2:]
    assert models == str(sorted(MODEL_TYPES))
    assert tasks == "True False"


def test_a_task_of_the_user_overrides_ours(tmp_path):
    ours = package_folder("tasks") / "samsum" / "lora_drop_samsum.yaml"
    (tmp_path / "mine.yaml").write_text(f"task: lora_drop_samsum\ninclude: {ours}\n")
    assert "task: lora_drop_samsum" in ours.read_text()
    out = python(
        "from lm_eval.tasks import TaskManager\n"
        f"print(TaskManager(include_path={str(tmp_path)!r}).task_index['lora_drop_samsum'].yaml_path)"
    )
    assert out.strip() == str(tmp_path / "mine.yaml")


def test_interpreter_start_imports_nothing_of_ours_and_the_harness_no_torch():
    out = python(
        "import sys; print([m for m in sys.modules if 'lora_drop' in m]);"
        "import lm_eval.models, lm_eval.tasks; print('torch' in sys.modules)"
    )
    assert out.split() == ["[]", "False"]


def test_releases_with_discovery_find_the_same_model_types():
    found = {entry.name: entry.value for entry in importlib.metadata.entry_points(group="lm_eval.models")}
    assert {name: target for name, target in found.items() if "lora-drop" in name} == MODEL_TYPES


@pytest.mark.parametrize("name", ["tasks", "configs"])
def test_the_folders_are_where_the_package_says(name):
    assert any(package_folder(name).iterdir())
