"""Which room may import which, read from the source, imports for type checking included.

`FLOORS` is the one statement of it; CONTRIBUTING.md prints the same list. Every pair of rooms is checked: a room
imports rooms on lower floors only, never one on its own floor, and no module is in a ring with another.
"""

import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lm_eval_lora_drop"
NAME = PACKAGE.name
HEAVY = {"torch", "transformers", "vllm", "peft", "accelerate"}
# From the top of the house to the ground; rooms on one floor do not know each other.
FLOORS = [
    ["commands", "harness.hooks"],
    ["study"],
    ["api"],
    ["backends"],
    ["show"],
    ["engine", "train"],
    ["sweep"],
    ["adapter", "statistics", "judge"],
    ["record"],
    ["metrics"],
    ["harness"],
    ["options"],
    ["variant", "files", "endings"],
    ["errors", "text"],
]
FLOOR_OF = {room: number for number, floor in enumerate(FLOORS) for room in floor}
ROOMS = sorted(FLOOR_OF)
# What plans, draws, scores and decides knows no model.
BACKEND_FREE = [
    *sorted(
        file
        for room in ("options", "harness", "sweep", "record", "show", "statistics")
        for file in (PACKAGE / room).rglob("*.py")
    ),
    *(PACKAGE / "backends" / f"{name}.py" for name in ("base", "checks", "state")),
    *(PACKAGE / f"{name}.py" for name in ("variant", "errors")),
]
MOST_FILES = 12
MOST_LINES = 400
MOST_ROOT_FILES = 6
# Rooms that import lm_eval when they run; the others do for types alone. `metrics` is what the YAML files of `tasks/`
# name: it counts as the shipped tasks, and may subclass lm-eval's classes for tasks, nothing else.
KNOWS_LM_EVAL = {"harness", "harness.hooks", "backends", "metrics"}
OF_A_TASK = {"lm_eval.api.task.ConfigurableTask", "lm_eval.api.filter.Filter"}


@functools.cache
def imported(file, *, for_typing=True):
    """The modules that a file imports, those within functions included."""
    return tuple(_imported(file, for_typing))


def _imported(file, for_typing):
    nodes = list(ast.parse(file.read_text(encoding="utf-8")).body)
    while nodes:
        node = nodes.pop()
        if not for_typing and isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            nodes.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (f"{node.module}.{name.name}" for name in node.names)
        else:
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
                yield from (one.value for one in node.args if isinstance(one, ast.Constant))
            nodes.extend(ast.iter_child_nodes(node))


def modules():
    return sorted(file for file in PACKAGE.rglob("*.py") if file.parts[-2] not in ("tasks", "configs"))


def dotted(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def graph(files=None):
    """Module -> the modules of ours that it imports."""
    sources = {dotted(file): imported(file) for file in modules()} if files is None else files
    found = {}
    for module, names in sources.items():
        # `from a.b import c` names a module c of a.b, or something in a.b.
        targets = {name if name in sources else name.rpartition(".")[0] for name in names}
        found[module] = {target for target in targets if target in sources and target not in (module, NAME)}
    return found


def room_of(module):
    """The room of a module: the folder or file at the root, but the floor of `harness` that hooks into lm-eval is one
    of its own."""
    if module.startswith(f"{NAME}.harness.hooks"):
        return "harness.hooks"
    return module.split(".")[1] if "." in module else ""


def climbs(edges):
    """(room, other room) -> the imports that a floor plan forbids."""
    found = {}
    for module, targets in edges.items():
        for target in targets:
            one, other = room_of(module), room_of(target)
            if one in ("_startup", "") or one == other:
                continue
            if FLOOR_OF[one] >= FLOOR_OF[other]:
                found.setdefault((one, other), []).append(f"{module} -> {target}")
    return found


def rings(edges):
    """Groups of modules that import each other in a circle."""
    reach = {module: set(targets) for module, targets in edges.items()}
    changed = True
    while changed:
        changed = False
        for targets in reach.values():
            more = set().union(*(reach[target] for target in targets)) - targets if targets else set()
            if more:
                targets |= more
                changed = True
    return sorted(module for module, targets in reach.items() if module in targets)


def test_every_room_has_one_floor():
    assert len(ROOMS) == sum(map(len, FLOORS))
    assert {room_of(dotted(file)) for file in modules()} - {"", "_startup"} == set(ROOMS)


def test_no_room_imports_one_above_or_beside_it():
    assert climbs(graph()) == {}


def test_no_module_is_in_a_ring():
    assert rings(graph()) == []


def test_no_backend_in_what_is_backend_free():
    for file in BACKEND_FREE:
        assert {name.split(".")[0] for name in imported(file, for_typing=False)} & HEAVY == set(), file


def of_lm_eval(file, **how):
    """What a file imports of lm_eval."""
    return {name for name in imported(file, **how) if name.split(".")[0] == "lm_eval"}


def test_lm_eval_is_imported_behind_its_door_only():
    for file in modules():
        room, found = room_of(dotted(file)), of_lm_eval(file, for_typing=False)
        if room == "metrics":
            found -= OF_A_TASK
        elif room in KNOWS_LM_EVAL:
            found = set()
        assert found == set(), file


def test_the_table_at_the_door_names_everything_of_lm_eval():
    table = ast.get_docstring(ast.parse((PACKAGE / "harness" / "__init__.py").read_text(encoding="utf-8")))
    shown = set()
    for row in re.split(r"\n(?=    \S)", table)[1:]:
        # The first column: a module of lm_eval, and names in it.
        module, _, names = " ".join(line[:38].strip() for line in row.split("\n")).partition(":")
        shown |= {module, *(f"{module}.{name}" for name in re.findall(r"\w+", names))}
    used = {name.removeprefix("lm_eval.") for file in modules() for name in of_lm_eval(file)} - {"lm_eval"}
    assert used - shown == set()


def test_the_root_is_small_and_imports_nothing():
    for name in ("__init__", "_startup"):
        ours = {one for one in imported(PACKAGE / f"{name}.py", for_typing=False) if one.split(".")[0] == NAME}
        assert ours == set(), name
    files = {file.stem for file in PACKAGE.glob("*.py")} - {"__init__", "_startup"}
    assert len(files) <= MOST_ROOT_FILES, files


def test_vllm_is_imported_by_its_backend_only():
    found = {file.name for file in modules() if any(name.split(".")[0] == "vllm" for name in imported(file))}
    assert found <= {"vllm.py", "vllm_lora.py", "check.py"}


def test_rooms_and_files_stay_small():
    folders = {file.parent for file in modules()} - {PACKAGE, PACKAGE / "commands"}
    counts = {folder.relative_to(PACKAGE).as_posix(): len(list(folder.glob("*.py"))) for folder in folders}
    assert {room: count for room, count in counts.items() if count > MOST_FILES} == {}
    lines = {dotted(file): len(file.read_text(encoding="utf-8").split("\n")) for file in modules()}
    assert {module: count for module, count in lines.items() if count > MOST_LINES} == {}


def test_no_two_classes_have_one_name():
    places = {}
    for file in modules():
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(dotted(file))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def hidden_names(init):
    """Names that a package's `__init__` gives to something, and that a module takes away when it is imported."""
    modules = {file.stem for file in init.parent.glob("*.py")}
    modules |= {one.parent.name for one in init.parent.glob("*/__init__.py")}
    nodes, given = list(ast.parse(init.read_text(encoding="utf-8")).body), set()
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.ImportFrom):
            given |= {name.asname or name.name for name in node.names if node.module != dotted(init)}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            given.add(node.name)
        elif isinstance(node, ast.If | ast.Try):
            nodes += [*node.body, *node.orelse]
    return given & modules


def test_no_package_gives_something_the_name_of_its_module():
    for init in PACKAGE.rglob("__init__.py"):
        # `lm_eval_lora_drop.sweep` is the function: `_Package` sees to it (tests/api).
        assert hidden_names(init) == ({"sweep"} if init.parent == PACKAGE else set()), init


def test_contributing_shows_the_same_floors():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text[text.index("<!-- floors -->") : text.index("<!-- /floors -->")]
    shown = [re.findall(r"`([a-z_.]+)`", line.split("|")[1]) for line in table.split("\n") if line.startswith("| `")]
    assert shown == FLOORS
