"""lm-eval finds us by itself, once, however we were installed; its command ends with our answer, where it is ours."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

import lm_eval_lora_drop
from lm_eval_lora_drop.files import package_folder
from testing.forked import ROOT, Forked
from testing.recorded_runs import run_record, sweep_record, task_record

STARTUP = Path(lm_eval_lora_drop.__file__).with_name("_startup.py")
# As the .pth does it, from this checkout: whatever an installation has armed is taken out first.
ARMED = (
    "import sys\n"
    "sys.meta_path[:] = [f for f in sys.meta_path if getattr(f, '__name__', '') != '_LoraDropFinder']\n"
    f"STARTUP = open({str(STARTUP)!r}).read()\n"
    "exec(STARTUP)\n"
)
# To list lm-eval's own tasks takes longer than all the rest.
FEW_TASKS = "from testing import task_files; task_files.leave_out()\n"
MODEL_TYPES = ["hf-lora-drop", "vllm-lora-drop"]


def python(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_the_harness_knows_model_types_and_tasks_and_the_user_s_come_first(tmp_path):
    ours = package_folder("tasks") / "samsum" / "lora_drop_samsum.yaml"
    (tmp_path / "mine.yaml").write_text(f"task: lora_drop_samsum\ninclude: {ours}\n")
    assert "task: lora_drop_samsum" in ours.read_text()
    out = python(
        f"{ARMED}{FEW_TASKS}from lm_eval.api.registry import model_registry; import lm_eval.models\n"
        "from lm_eval.tasks import TaskManager\n"
        "print([n for n in model_registry.keys() if 'lora-drop' in n])\n"
        "print(*['lora_drop_samsum' in TaskManager(include_defaults=d).all_tasks for d in (True, False)])\n"
        f"print(TaskManager(include_path={str(tmp_path)!r}).task_index['lora_drop_samsum'].yaml_path)"
    )
    assert out.splitlines()[-3:] == [str(MODEL_TYPES), "True False", str(tmp_path / "mine.yaml")]


def test_two_installations_arm_once():
    """A wheel beside an editable install leaves two .pth files, each with the same line."""
    out = python(
        f"{ARMED}exec(STARTUP); exec(STARTUP)\n"
        "print([getattr(f, '__name__', '') for f in sys.meta_path].count('_LoraDropFinder'))\n"
        "from lm_eval.tasks import TaskManager\n"
        "wrapped, depth = TaskManager.__init__, 0\n"
        "while hasattr(wrapped, '__wrapped__'): wrapped, depth = wrapped.__wrapped__, depth + 1\n"
        "print(depth)"
    )
    assert out.split() == ["1", "1"]


def test_where_the_harness_discovers_entry_points_we_leave_it_to_it():
    """`load_plugins(group, registry)` as in the harness's pull request 4013: names that are taken are skipped."""
    out = python(
        f"{ARMED}"
        "from importlib.metadata import entry_points\n"
        "from lm_eval.api import registry\n"
        "def load_plugins(group, known):\n"
        "    new = [e for e in entry_points(group=group) if e.name not in known]\n"
        "    for e in new: known.register(e.name, target=e.value)\n"
        "    return [e.name for e in new]\n"
        "registry.load_plugins = load_plugins\n"
        "import lm_eval.models\n"
        "print(sorted(n for n in registry.model_registry.keys() if 'lora-drop' in n))\n"
        "print(sorted(set(load_plugins('lm_eval.models', registry.model_registry))))\n"
    )
    before, found = out.splitlines()
    assert before == "[]"
    assert found == str(MODEL_TYPES)


def test_neither_interpreter_start_nor_registering_imports_anything_of_ours_or_torch():
    out = python(
        f"{ARMED}import lm_eval.models, lm_eval.tasks; lm_eval.tasks.TaskManager(include_defaults=False)\n"
        "print([m for m in sys.modules if 'lora_drop' in m or m == 'torch'])"
    )
    assert out.split() == ["[]"]


def test_importing_the_package_is_cheap():
    """Only what a name needs is imported, when it is asked for."""
    out = python(
        "import sys; import lm_eval_lora_drop as lora_drop\n"
        "print([m for m in sys.modules if m.startswith('lm_eval')])\n"
        "lora_drop.Variant.below(3, 4); lora_drop.ArgumentError\n"
        "print([m for m in ('torch', 'lm_eval', 'numpy', 'rich', 'matplotlib', 'msgspec') if m in sys.modules])\n"
        "lora_drop.read\n"
        "print([m for m in ('torch', 'lm_eval', 'matplotlib', 'pandas') if m in sys.modules])\n"
        "print(sorted(set(lora_drop.__all__) - set(dir(lora_drop))))\n"
        "print([n for n in lora_drop.__all__ if getattr(lora_drop, n, None) is None])"
    )
    assert out.splitlines() == ["['lm_eval_lora_drop']", "[]", "[]", "[]", "[]"]


def test_a_name_the_package_does_not_have_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'sweeep'"):
        _ = lm_eval_lora_drop.sweeep


def test_releases_with_discovery_find_the_same_model_types():
    found = {entry.name for entry in importlib.metadata.entry_points(group="lm_eval.models")}
    assert sorted(name for name in found if "lora-drop" in name) == MODEL_TYPES


@pytest.mark.parametrize("name", ["tasks", "configs"])
def test_the_folders_are_where_the_package_says(name):
    assert any(package_folder(name).iterdir())


# The command line. The model is lm-eval's own dummy, which says of itself what a run of ours says, after one of our
# model types was looked up.
PROGRAM = """
import json
import lm_eval._cli
from lm_eval.api.registry import get_model, register_model
from lm_eval.models.dummy import DummyLM

@register_model("dummy-with-record")
class Recorded(DummyLM):
    def get_model_info(self):
        return json.load(open(ENTRY))

get_model("hf-lora-drop")
sys.argv = ["lm_eval", *ARGUMENTS]
from lm_eval.__main__ import cli_evaluate
cli_evaluate()
"""


def lm_eval(tmp_path, entry, *arguments):
    docs = [{"question": f"{i}?", "answer": "lol" if i % 2 else "no"} for i in range(8)]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tmp_path / "toy.yaml").write_text(
        "task: toy_of_this_test\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'docs.jsonl'}}}}}\n"
        "test_split: test\noutput_type: generate_until\ndoc_to_text: '{{question}}'\ndoc_to_target: '{{answer}}'\n"
        "generation_kwargs: {until: ['.'], do_sample: false}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\nmetadata: {version: 1}\n"
    )
    (tmp_path / "entry.json").write_text(json.dumps(entry))
    arguments = [
        *("run", "--model", "dummy-with-record", "--tasks", "toy_of_this_test", "--include_path", str(tmp_path)),
        *arguments,
    ]
    code = f"{ARMED}{FEW_TASKS}ENTRY = {str(tmp_path / 'entry.json')!r}\nARGUMENTS = {arguments!r}\n{PROGRAM}"
    process = Forked(["-c", code], HF_DATASETS_CACHE=str(tmp_path / "cache"))
    out, said = process.communicate()
    assert process.returncode == 0, said[-2000:]
    return out


def test_the_last_thing_lm_eval_prints_is_the_answer(tmp_path):
    from lm_eval_lora_drop.record.schema import to_entry

    record = run_record({"toy_of_this_test": task_record(sweep_record())})
    out = lm_eval(tmp_path, to_entry(record), "--output_path", str(tmp_path / "out"))
    harness, _, ours = out.partition("lora-drop ---")
    assert "toy_of_this_test" in harness
    assert "|exact_match|" in harness.replace(" ", "")
    (results,) = (tmp_path / "out").rglob("results_*.json")
    assert f"Results  {results}\n" in ours
    assert f"Figure   {results.parent / 'sweep-toy_of_this_test.png'}\n" in ours
    assert "K = 7 (chosen)" in ours
    assert "Keep the bottom 7 of 10 layers, 30 % smaller" in ours
    last = ours.strip().splitlines()[-1]
    assert last == f"Export   lora-drop export --results {results} --output mine-K7"
