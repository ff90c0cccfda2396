"""Which room may import which, read from the source: plugin -> models -> (validation, sweep, engine) -> layers ..."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lm_eval_lora_drop"
NAME = PACKAGE.name
HEAVY = {"torch", "transformers", "vllm", "peft", "accelerate"}
# What plans, draws, scores and decides knows no model.
BACKEND_FREE = [
    *sorted((PACKAGE / "sweep").glob("*.py")),
    *(PACKAGE / "models" / f"{name}.py" for name in ("base", "args", "record", "search", "cache_guard", "together")),
    *(PACKAGE / f"{name}.py" for name in ("validation", "boundary", "errors", "plugin", "cli")),
]
# A room may import those in lower rows and itself.
ROWS = [
    {"plugin", "cli", "ablate"},
    {"models"},
    {"validation", "sweep", "engine", "probe", "judge", "report", "export", "export_card"},
    {"layers", "adapter_files", "ablate_grid", "metrics", "data", "files"},
    {"boundary"},
    {"errors"},
]


def imported(file):
    """The modules that a file imports, those within functions included, those for type checkers alone left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = list(tree.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (f"{node.module}.{name.name}" for name in node.names)
        else:
            nodes.extend(ast.iter_child_nodes(node))


def modules():
    return sorted(file for file in PACKAGE.rglob("*.py") if file.parts[-2] not in ("tasks", "configs"))


def room(file):
    """The room a file stands in; a subcommand (`cli.py`, `..._cli.py`) belongs to the command line, above all rooms."""
    return "cli" if file.stem.endswith("cli") else file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", BACKEND_FREE, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_backend_in_what_is_backend_free(file):
    assert {name.split(".")[0] for name in imported(file)} & HEAVY == set()


def test_vllm_is_imported_by_its_backend_only():
    found = {file.name for file in modules() if any(name.split(".")[0] == "vllm" for name in imported(file))}
    assert found == {"vllm.py", "vllm_lora.py"}


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_flow_one_way(file):
    rank = {name: number for number, row in enumerate(ROWS) for name in row}
    mine = room(file)
    if mine in ("__init__", "_startup"):
        return
    assert mine in rank, f"{mine} is a new room: say in ROWS where it stands"
    for name in imported(file):
        parts = name.split(".")
        if parts[0] != NAME or len(parts) == 1 or parts[1] not in rank:
            continue
        other = "cli" if parts[1:3] == [mine, "cli"] else parts[1]
        assert other == mine or rank[mine] <= rank[other], f"{file} imports {name} from a room above"
