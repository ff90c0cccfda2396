"""Which layers of my LoRA adapter do I need? A plugin for EleutherAI's lm-evaluation-harness.

The harness finds the model types and the tasks by itself (see `plugin`); nothing here is imported before it is used.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("lm-eval-lora-drop")
except PackageNotFoundError:  # a checkout on PYTHONPATH, never installed
    __version__ = "0+unknown"
