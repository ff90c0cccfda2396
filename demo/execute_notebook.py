"""Executes docs/notebook.ipynb from start to end, here, and keeps what it shows.

    python demo/execute_notebook.py            # writes docs/notebook.ipynb
    python demo/execute_notebook.py -o FILE    # writes another file, to see whether it still runs

Needs nbclient, nbformat and ipykernel (`pip install --group docs`), and the demo's model, which it prepares. Progress
bars and log lines are left out of what is kept: they are no part of the answer, and differ every time.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from prepare_model import FOLDER, prepare_model

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
OUT = ROOT / "out" / "notebook"
"""What the notebook writes to; an export wants a new folder."""


def execute(source: Path, destination: Path) -> None:
    """Run every cell of `source` in the repository's folder and write it with its outputs to `destination`.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell ended with an exception; its traceback is the message.
    """
    notebook = nbformat.read(source, as_version=4)
    shutil.rmtree(OUT, ignore_errors=True)
    NotebookClient(notebook, timeout=3600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    # Which Python it ran in is not what the page is about, and would change the file with every release.
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.validate(notebook)
    nbformat.write(notebook, destination)


def main() -> int:
    """Execute; 0 unless a cell fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=NOTEBOOK, help="default: docs/notebook.ipynb")
    args = parser.parse_args()
    prepare_model(FOLDER)
    execute(NOTEBOOK, args.output)
    print(f"{args.output}: every cell ran")
    return 0


if __name__ == "__main__":
    sys.exit(main())
