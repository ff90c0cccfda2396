"""What else pages tell a reader to type: Python, programs of this repository, make, commands with parts left out."""

import argparse
import ast
import importlib
import inspect
import json
import re
import shlex

import pytest
from lm_eval._cli.harness import HarnessCLI

from lm_eval_lora_drop import api
from lm_eval_lora_drop.commands.main import make_parser
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.options import parse_model_args
from tests.docs.test_commands import KNOWN, PAGES, PROGRAMS, ROOT, code

READMES = [ROOT / "CONTRIBUTING.md", *(ROOT / folder / "README.md" for folder in ("demo", "benchmarks", "configs"))]
ALL = [*PAGES, *READMES]
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))


def ids(page):
    return str(page.relative_to(ROOT))


def blocks(text):
    """The Python of a page: fenced, or a line that imports from here."""
    fenced = [block[1] for block in re.finditer(r"```python\n(.*?)```", text, re.DOTALL)]
    return fenced + re.findall(r"^ {4}(from lm_eval_lora_drop\S* import .*)$", text, re.MULTILINE)


def wrong_python(text):
    """What a block of Python names that does not exist: modules, attributes, arguments of `lora_drop.sweep`."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lm_eval_lora_drop"):
            module = importlib.import_module(node.module)
            found += [f"{node.module}.{name.name}" for name in node.names if not hasattr(module, name.name)]
        if not isinstance(node, ast.Attribute | ast.Call):
            continue
        target = node.func if isinstance(node, ast.Call) else node
        if not isinstance(target, ast.Attribute) or not isinstance(target.value, ast.Name):
            continue
        # A result of one task has what the task's has.
        owner = {"lora_drop": api, "result": api.TaskResult, "again": api.TaskResult}.get(target.value.id)
        if owner is None:
            continue
        if not hasattr(owner, target.attr):
            found.append(f"{target.value.id}.{target.attr}")
        elif isinstance(node, ast.Call) and owner is api:
            found += _wrong_call(getattr(api, target.attr), node)
    return found


def _wrong_call(function, node):
    values = {word.arg: word.value.value if isinstance(word.value, ast.Constant) else "x" for word in node.keywords}
    bound = inspect.signature(function).bind(*node.args, **values)
    try:
        parse_model_args(
            {"pretrained": "a", "peft": "b", **bound.arguments.get("model_args", {})}, KNOWN["hf-lora-drop"]
        )
    except ArgumentError as error:
        return [str(error)]
    return []


PYTHON = [
    *((f"{ids(page)}:{n}", block) for page in ALL for n, block in enumerate(blocks(page.read_text(encoding="utf-8")))),
    *(
        (f"{ids(book)}:{n}", "".join(cell["source"]))
        for book in NOTEBOOKS
        for n, cell in enumerate(json.loads(book.read_text(encoding="utf-8"))["cells"])
        if cell["cell_type"] == "code"
    ),
]


@pytest.mark.parametrize("block", [pytest.param(text, id=name) for name, text in PYTHON])
def test_python_on_a_page_names_what_exists(block):
    assert wrong_python(block) == []


def test_a_notebook_shows_what_it_has_run_and_no_error():
    for book in NOTEBOOKS:
        cells = [cell for cell in json.loads(book.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), book
        outputs = [one for cell in cells for one in cell["outputs"]]
        assert {one["output_type"] for one in outputs} <= {"execute_result", "display_data", "stream"}
        assert any("image/png" in one.get("data", {}) for one in outputs)
        assert any("<img" in "".join(one.get("data", {}).get("text/html", "")) for one in outputs)


@pytest.mark.parametrize("page", ALL, ids=ids)
def test_programs_and_targets_of_this_repository_exist(page):
    text = page.read_text(encoding="utf-8")
    files = re.findall(r"python3? ((?:demo|benchmarks|tools|configs)/[\w/]+\.py)", text)
    modules = re.findall(r"python3? -m ((?:benchmarks|campaign)(?:\.\w+)*)", text)
    files += [name.replace(".", "/") + ("/__main__.py" if "." not in name else ".py") for name in modules]
    assert [name for name in files if not (ROOT / name).is_file()] == []
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:`|^ {4})make ([a-z-]+)", text, re.MULTILINE)) <= targets


def options_of(parser):
    """Every option of a parser and of the commands below it, by command."""
    found = {"": set(parser._option_string_actions)}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                for deeper, options in options_of(below).items():
                    found[f"{name} {deeper}".strip()] = options
    return found


OPTIONS = {"lora-drop": options_of(make_parser()), "lm_eval": options_of(HarnessCLI()._parser)}


def unknown_options(words):
    """The options of a command that its program does not have, whatever is left out of it."""
    program = next(word for word in words if word in PROGRAMS)
    words = words[words.index(program) + 1 :]
    known = OPTIONS[program]
    # Without a command lm_eval runs; judge and others have commands of their own.
    named = [" ".join(words[:length]) for length in (2, 1) if " ".join(words[:length]) in known]
    options = known[named[0] if named else "run" if program == "lm_eval" else ""]
    return [word for word in words if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in options]


def elided(text):
    """The commands on a page that `test_commands` cannot parse, since something is left out of them."""
    found = []
    for line in code(text):
        line = re.sub(r"^(?:\$ )?(?:\w+=\S+ )*", "", line)
        if re.match(r"(?:accelerate launch .*-m )?(?:lm_eval|lora-drop) ", line) and "..." in line:
            found.append(shlex.split(line.partition(" | ")[0].replace("[", "").replace("]", ""), comments=True))
    return found


ELIDED = [
    pytest.param(words, id=f"{ids(page)}:{' '.join(words)[:50]}")
    for page in ALL
    for words in elided(page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("words", ELIDED)
def test_a_command_with_parts_left_out_has_no_unknown_option(words):
    assert unknown_options(words) == []
