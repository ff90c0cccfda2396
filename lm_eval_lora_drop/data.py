"""Reads a benchmark from the Hugging Face Hub or from a folder, to the same columns and the same splits.

A task's YAML names this loader and says what it wants:

    custom_dataset: !function lm_eval_lora_drop.data.load
    dataset_kwargs:
      hub: knkarthick/samsum
      folder: samsum
      columns: {id: string, dialogue: string, summary: string}
      splits: {train: "train*", validation: "validation*", test: "test*"}

`--metadata '{"data_dir": "..."}'` makes the harness pass `data_dir` on, and the folder is read instead of the Hub.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError

JSON_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "list": list,
    "object": dict,
}
"""What a task may ask of a column, in JSON's words."""

SUFFIXES = (".jsonl", ".jsonl.gz", ".tsv", ".tsv.gz")

Row = dict[str, Any]
Parser = Callable[[Path], Iterator[tuple[int, Row]]]


def load(
    *,
    hub: str | None,
    folder: str,
    columns: Mapping[str, str],
    splits: Mapping[str, str],
    hub_config: str | None = None,
    hub_revision: str | None = None,
    data_dir: str | None = None,
    **_others: Any,
) -> Any:
    """Returns a `datasets.DatasetDict` with exactly `splits` and `columns`.

    `columns` maps a column to its JSON type; `splits` maps a split to the file name pattern of its local files,
    without suffix. `data_dir` (relative to the current directory) is the benchmark's folder, or one that holds it as
    `folder`. The harness passes everything in a task's metadata, so other keywords are let through.

    Raises `ArgumentError` with file and line where local data cannot be used.
    """
    if data_dir is not None:
        return load_folder(find_folder(data_dir, folder), columns, splits)
    if hub is None:
        raise ArgumentError(
            f"{folder}: this benchmark is not on the Hub and needs its files. "
            f"""Give their folder: --metadata '{{"data_dir": "path/to/{folder}"}}'."""
        )
    return load_hub(hub, hub_config, hub_revision, columns, splits)


def load_hub(
    hub: str, config: str | None, revision: str | None, columns: Mapping[str, str], splits: Mapping[str, str]
) -> Any:
    """The Hub dataset as a `DatasetDict`, its columns cut down to the ones asked for."""
    from datasets import DatasetDict, load_dataset

    found = load_dataset(hub, name=config, revision=revision)
    for split in splits:
        if split not in found:
            raise ArgumentError(f"{hub}: no split {split!r}; it has {', '.join(sorted(found))}. Is the revision right?")
        missing = [name for name in columns if name not in found[split].column_names]
        if missing:
            raise ArgumentError(
                f"{hub}, split {split}: no column {', '.join(missing)}; it has {', '.join(found[split].column_names)}. "
                "Is the revision right?"
            )
    return DatasetDict({split: found[split].select_columns(list(columns)) for split in splits})


def find_folder(data_dir: str, folder: str) -> Path:
    """`data_dir` itself, or its subfolder `folder`: one `data_dir` then serves a group of tasks."""
    path = Path(data_dir).expanduser()
    if not path.is_dir():
        raise ArgumentError(f"data_dir must be a folder with the benchmark's files; {path.absolute()} is none.")
    return path / folder if (path / folder).is_dir() else path


def load_folder(
    folder: Path, columns: Mapping[str, str], splits: Mapping[str, str], parse: Parser | None = None
) -> Any:
    """The files of `folder` as a `DatasetDict`; `parse` yields (line number, row) of one file."""
    from datasets import Dataset, DatasetDict

    read = parse or read_rows
    loaded = {}
    for split, pattern in splits.items():
        files = find_files(folder, pattern)
        rows = [select(row, columns, f"{path}, line {line}") for path in files for line, row in read(path)]
        if not rows:
            raise ArgumentError(f"{', '.join(map(str, files))}: no example in it, so split {split!r} would be empty.")
        try:
            loaded[split] = Dataset.from_list(rows)
        except (ValueError, TypeError) as error:  # pyarrow's own errors are ValueErrors
            raise ArgumentError(f"{folder}, split {split}: the lines do not agree in their types: {error}") from error
    return DatasetDict(loaded)


def find_files(folder: Path, pattern: str) -> list[Path]:
    """The files of one split, in the order of their names."""
    files = sorted({path for suffix in SUFFIXES for path in folder.glob(pattern + suffix) if path.is_file()})
    if not files:
        present = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise ArgumentError(
            f"{folder}: no file {pattern} with one of the suffixes {', '.join(SUFFIXES)}; the folder has {present}."
        )
    return files


def select(row: Row, columns: Mapping[str, str], where: str) -> Row:
    """The columns asked for, checked."""
    for name, kind in columns.items():
        if name not in row:
            raise ArgumentError(f"{where}: no column {name!r}; it has {', '.join(map(str, row)) or 'none'}.")
        value = row[name]
        if not isinstance(value, JSON_TYPES[kind]) or (isinstance(value, bool) and kind != "object"):
            raise ArgumentError(f"{where}: column {name!r} must be of type {kind}, not {type(value).__name__}.")
    return {name: row[name] for name in columns}


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
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
                        f"{path}, line {number}: not UTF-8 (byte {error.start + 1} of the line). Convert the file first."
                    ) from error
                line = line.removesuffix("\n").removesuffix("\r")
                if line.strip():
                    yield number, line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ArgumentError(f"{path}: no complete gzip file ({error}).") from error
    except OSError as error:
        raise ArgumentError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _parse_json(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ArgumentError(f"{where}: no JSON ({error.msg}, column {error.colno}).") from error
    if not isinstance(row, dict):
        raise ArgumentError(f"{where}: each line must be a JSON object, not {type(row).__name__}.")
    return row
