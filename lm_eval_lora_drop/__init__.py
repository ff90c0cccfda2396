"""Which layers of my LoRA adapter do I need? A plugin for EleutherAI's lm-evaluation-harness.

The harness finds the model types and the tasks by itself (see `plugin`). This file runs at every start of the
interpreter that has the plugin installed, so it imports nothing.
"""


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lm-eval-lora-drop")
    except PackageNotFoundError:  # a checkout on PYTHONPATH, never installed
        return "0+unknown"
