"""`lm_eval` commands that name nothing of ours behave as without us, whatever of ours is broken.

Everything is broken at once: a copy of the package in which each module raises when it is imported, and beside it a
module that raises in place of each dependency that lm-eval does not import itself. A broken module can change a command
only by being imported. The commands below import none of them, which `sys.modules` and their unchanged output show, so
the same holds for each of them broken alone. What cannot be left out of that copy is the file that registers our names:
it is broken alone, and costs one warning.
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lm_eval_lora_drop.files import package_folder
from testing.toy import write_task
from tests.harness.test_hooks import STARTUP

PACKAGE = STARTUP.parent
REGISTRATION = Path("harness", "hooks", "registration.py")
RAISES = "raise RuntimeError('this module is broken')\n"
TASK = "toy_of_this_test"
COMMANDS = {
    "ls --help": ["ls", "--help"],
    "ls": ["ls"],
    "validate": ["validate", "--tasks", TASK, "--include_path", "TASKS"],
    "validate, no such task": ["validate", "--tasks", "nope", "--include_path", "TASKS"],
    "run": ["run", "--model", "dummy", "--tasks", TASK, "--include_path", "TASKS", "--output_path", "OUT"],
    "run, no such task": ["run", "--model", "dummy", "--tasks", "nope", "--include_path", "TASKS"],
    "run, no such option": ["run", "--model", "dummy", "--taks", "nope"],
}
FEW = ("ls --help", "run")
MINE = ["run", "--model", "hf-lora-drop", *COMMANDS["run"][3:7]]
# One process runs them all, and writes for each its exit status, output and the modules that are there afterwards. Of
# lm-eval's own ten thousand task files none is read: to list them takes longer than all the rest.
PROGRAM = """
import json, os, sys
sys.meta_path[:] = [f for f in sys.meta_path if getattr(f, "__name__", "") != "_LoraDropFinder"]
STARTUP, PATCH, COMMANDS, TO = json.load(sys.stdin)
exec(STARTUP)
exec(PATCH)
from pathlib import Path

def without_its_own_tasks():
    from lm_eval.tasks import _index
    build, own = _index.TaskIndex.build, Path(_index.__file__).parent
    _index.TaskIndex.build = staticmethod(lambda paths, **named: build([p for p in paths if Path(p) != own], **named))

found = {}
for name, words in COMMANDS.items():
    sys.argv = ["lm_eval", *words]
    status, texts = 0, []
    for number in (1, 2):
        os.dup2(os.open(f"{TO}.{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if found:
        without_its_own_tasks()
    try:
        from lm_eval.__main__ import cli_evaluate
        cli_evaluate()
    except SystemExit as end:
        status = end.code
    except BaseException:
        status = 1
        try:
            sys.excepthook(*sys.exc_info())
        except SystemExit as end:  # as the interpreter takes it from a hook
            status = end.code
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    out, err = (Path(f"{TO}.{number}").read_text() for number in (1, 2))
    found[name] = {"status": status, "out": out, "err": err, "modules": sorted(sys.modules)}
json.dump(found, open(TO, "w"))
"""


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Run some of the commands, all in a process of their own; `path` goes before everything that is installed."""
    folder = tmp_path_factory.mktemp("stock")
    rows = [{"question": f"{i}?", "answer": "lol" if i % 2 else "no"} for i in range(4)]
    write_task(folder / "tasks", TASK, {"test": rows})
    places = {"TASKS": str(folder / "tasks"), "OUT": str(folder / "out")}

    def run(only=tuple(COMMANDS), *, startup=None, path="", patch="", **more):
        given = {**{name: COMMANDS[name] for name in only}, **more}
        given = {name: [places.get(word, word) for word in words] for name, words in given.items()}
        # The same environment and checkout in each case: what differs is what has been armed.
        started = STARTUP.read_text() if startup is None else startup
        to = folder / "found.json"
        to.unlink(missing_ok=True)
        cache = str(tmp_path_factory.mktemp("cache"))  # a warm one would change what is shown of the data's loading
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            input=json.dumps([started, patch, given, str(to)]),
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            env={**os.environ, "HF_DATASETS_CACHE": cache, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(path)},
        )
        assert to.exists(), done.stderr[-3000:]
        return json.loads(to.read_text())

    return run


@pytest.fixture(scope="module")
def stock(commands):
    """What the commands do without us."""
    return commands(startup="")


def visible(found, name):
    """Exit status and output of a command, without times and where in memory a thing lies."""
    text = "\0".join((str(found[name]["status"]), found[name]["out"], found[name]["err"]))
    text = re.sub(r"\d{4}-\d\d-\d\d[T:]\d\d[:-]\d\d[:-]\d\d(\.\d+)?|0x[0-9a-f]+|\[[^]\r\n]*/s\]", "#", text)
    return re.sub(r"\d+%\|[^\r\n]*", "bar", text)


def assert_as_without_us(found, stock, names):
    for name in names:
        assert visible(found, name) == visible(stock, name)
        assert [one for one in found[name]["modules"] if one.startswith("lm_eval_lora_drop")] == []


def dependencies():
    """Import names of what we require, extras left out."""
    required = {
        re.split(r"[^\w.-]", one)[0] for one in importlib.metadata.requires("lm-eval-lora-drop") if "extra" not in one
    }
    normal = {re.sub(r"[-_.]+", "-", one).lower() for one in required}
    packages = importlib.metadata.packages_distributions().items()
    return sorted(
        name for name, owners in packages if {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners} & normal
    )


def broken_copy(folder, *, keep):
    """Our package in `folder` with a line that raises in place of each module; the tasks lie where a wheel has them."""
    copy = folder / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "tasks", "configs"))
    for file in copy.rglob("*.py"):
        if file.relative_to(copy) not in keep:
            file.write_text(RAISES)
    shutil.copytree(package_folder("tasks"), copy / "tasks")
    return folder


def test_everything_of_ours_and_what_only_we_need_broken(commands, stock, tmp_path):
    imported = {one.partition(".")[0] for command in stock.values() for one in command["modules"]}
    only_ours = [name for name in dependencies() if name not in imported]
    assert {"msgspec", "peft"} <= set(only_ours)
    assert not {"torch", "lm_eval", "numpy", "datasets"} & set(only_ours)
    folder = broken_copy(tmp_path, keep={REGISTRATION})
    for name in only_ours:
        (folder / f"{name}.py").write_text(RAISES)
    # The last two are there to show that this copy was found, and that it is broken.
    found = commands(path=folder, tasks=["ls", "subtasks"], mine=MINE)
    assert_as_without_us(found, stock, COMMANDS)
    assert [stock[name]["status"] for name in COMMANDS] == [0, 0, 0, 1, 0, 1, 2]
    assert "lora_drop_samsum" in found["tasks"]["out"]
    assert "this module is broken" in found["mine"]["err"]


def test_nothing_broken(commands, stock):
    wrong = ["run", "--model", "dummy", "--tasks", "lora_drop_samsum", "--metadata", "data_dir=/nope"]
    found = commands(FEW, wrong=wrong)
    assert_as_without_us(found, stock, FEW)
    # A task of ours that cannot be loaded ends in one line under any model type.
    assert found["wrong"]["status"] == 1
    assert "Traceback" not in found["wrong"]["err"]
    assert re.fullmatch(r"lm_eval: .*/nope.*", found["wrong"]["err"].rstrip().split("\n")[-1])


def test_the_file_that_registers_our_names_broken_costs_one_warning(commands, stock, tmp_path):
    found = commands(FEW, path=broken_copy(tmp_path, keep=()))
    warning = r"^.*UserWarning: lm-eval-lora-drop: its installation is damaged.*\n(  .*\n)?"
    told = "".join(found[name]["err"] for name in FEW)
    assert len(re.findall(warning, told, re.M)) == 1
    for name in FEW:
        found[name]["err"] = re.sub(warning, "", found[name]["err"], flags=re.M)
    assert_as_without_us(found, stock, FEW)


# What the 5.0 branch (pull request 3690) moves and we use (lm-eval has taken it by then), and its version.
GONE = "import lm_eval.api.task, lm_eval.api.utils as u; del u.maybe_delimit\n"
FIVE = f"import lm_eval; lm_eval.__version__ = '0.5.0.dev2'\n{GONE}"


def test_an_lm_eval_we_do_not_know_says_so_where_we_are_asked_for(commands, stock):
    found = commands(FEW, patch=FIVE, mine=MINE)
    assert_as_without_us(found, stock, FEW)
    lines = [line for line in found["mine"]["err"].split("\n") if line and not line.startswith("20")]
    assert found["mine"]["status"] == 1
    assert len(lines) == 1
    assert re.fullmatch(r"lm_eval: lm-eval 0\.\S+ is not supported yet by .*'lm-eval>=0.4.13,<0.5'", lines[0])
