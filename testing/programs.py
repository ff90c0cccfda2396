"""The demo's programs are no package: they are loaded from their files, as `python demo/run.py` would."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def load(path):
    """The module in a file below the project's root; modules beside it can be imported by it."""
    file = ROOT / path
    sys.path.insert(0, str(file.parent))
    try:
        spec = importlib.util.spec_from_file_location(f"{file.parent.name}_{file.stem}", file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where a dataclass looks its annotations up
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return module
