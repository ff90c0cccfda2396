"""Where files are, and a user's data files line by line, so that whatever is wrong can be named with file and line."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError

ROW_SUFFIXES = (".jsonl", ".jsonl.gz", ".tsv", ".tsv.gz")


def package_folder(name: str) -> Path:
    """The folder `tasks` or `configs`: inside the installed package, or at the top of a checkout."""
    here = Path(__file__).resolve().parent
    inside = here / name
    return inside if inside.is_dir() else here.parent / name


def find_folder(data_dir: str, folder: str) -> Path:
    """`data_dir` itself, or its subfolder `folder`: one `data_dir` then serves a group of tasks."""
    path = Path(data_dir).expanduser()
    if not path.is_dir():
        raise ArgumentError(f"data_dir must be a folder with the benchmark's files; {path.absolute()} is none.")
    return path / folder if (path / folder).is_dir() else path


def adapter_sources(peft: str) -> dict[str, str]:
    """Which adapters `peft` names, by the names that variants call them by; one alone is called "".

    Several are joined by `+`, or are the checkpoints of one run in a folder that is no adapter itself: the last one
    first. The first is the one that the others are held against. A folder whose name has a `+` is one adapter.

    Raises:
        ArgumentError: two of them would have the same name.
    """
    path = Path(peft).expanduser()
    if path.is_dir() and not (path / "adapter_config.json").is_file():
        found = [folder for folder in path.iterdir() if (folder / "adapter_config.json").is_file()]
        found.sort(
            key=lambda folder: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", folder.name)]
        )
        sources = [str(folder) for folder in reversed(found)]
    else:
        sources = [peft] if path.exists() else [part.strip() for part in peft.split("+")]
    if len(sources) < 2:
        return {"": sources[0] if sources else peft}
    # PEFT keeps adapters as torch modules, whose names have no dot; a variant's notation takes neither @ nor +.
    names = [re.sub(r"[^A-Za-z0-9_-]+", "_", Path(source).name).strip("_-") or "adapter" for source in sources]
    if len(set(names)) < len(names):
        raise ArgumentError(
            f"peft names {len(sources)} adapters, which are called by the last part of their paths, and two of these are "
            f"alike: {', '.join(names)}. Give the folders different names."
        )
    return dict(zip(names, sources, strict=True))


def source_of(peft: str, adapter: str) -> str:
    """The source of the adapter that a variant names.

    Raises:
        ArgumentError: there is none of that name.
    """
    sources = adapter_sources(peft)
    if adapter in sources:
        return sources[adapter]
    if not adapter or "" in sources:
        there = ", ".join(sources) if "" not in sources else "one without a name"
        raise ArgumentError(f"peft={peft} has {there}, and a variant of {adapter or 'no named adapter'} came. Name it.")
    raise ArgumentError(f"peft={peft} has the adapters {', '.join(sources)}, got {adapter!r}. Name one of these.")


def find_files(folder: Path, patterns: Sequence[str], suffixes: Sequence[str] = ROW_SUFFIXES) -> list[Path]:
    """The files of the first pattern that any file matches, in the order of their names.

    The suffix "" stands for files without one.
    """
    for pattern in patterns:
        files = {
            path
            for suffix in suffixes
            for path in folder.glob(pattern + suffix)
            if path.is_file() and (suffix or not path.suffix)
        }
        if files:
            return sorted(files)
    present = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise ArgumentError(
        f"{folder}: no file {' or '.join(patterns)} ending in {', '.join(filter(None, suffixes))}; "
        f"the folder has {present}. A task that reads two benchmarks takes the folder that holds both."
    )


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, row) of a JSON Lines file, or of a tab-separated one whose first line names the columns."""
    header: list[str] | None = None
    tabs = ".tsv" in path.suffixes
    for number, line in read_lines(path):
        if not tabs:
            yield number, _parse_json(line, f"{path}, line {number}")
        elif header is None:
            header = line.split("\t")
        else:
            cells = line.split("\t")
            if len(cells) != len(header):
                raise ArgumentError(f"{path}, line {number}: {len(cells)} cells where the header has {len(header)}.")
            yield number, dict(zip(header, cells, strict=True))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, text without its line end); blank lines are passed over, gzip is undone.

    Lines end with LF or CRLF only: Unicode's other separators occur inside texts.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise ArgumentError(
                        f"{path}, line {number}: not UTF-8 (byte {error.start + 1} of the line). Convert the file."
                    ) from error
                line = line.removesuffix("\n").removesuffix("\r")
                if line.strip():
                    yield number, line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ArgumentError(f"{path}: no complete gzip file ({error}). Fetch it again.") from error
    except OSError as error:
        raise ArgumentError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _parse_json(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ArgumentError(f"{where}: no JSON ({error.msg}, column {error.colno}).") from error
    if not isinstance(row, dict):
        raise ArgumentError(f"{where}: each line must be a JSON object, not {type(row).__name__}.")
    return row
