"""Brings a benchmark from the Hugging Face Hub, from a folder or from sacrebleu to the same splits and columns.

A task's YAML names this loader and says what it wants:

    custom_dataset: !function lm_eval_lora_drop.metrics.data.load
    dataset_kwargs:
      hub: knkarthick/samsum
      folder: samsum
      columns: {id: string, dialogue: string, summary: string}
      splits: {train: "train*", validation: "validation*", test: "test*"}

`--metadata '{"data_dir": "..."}'` makes the harness pass `data_dir` on, and the folder is read instead of the Hub.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.endings import end_lm_eval_in_one_line
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import ROW_SUFFIXES, find_files, find_folder, read_rows

JSON_TYPES: dict[str, type | tuple[type, ...]] = {"string": str, "integer": int, "list": list, "object": dict}
"""What a task may ask of a column, in JSON's words."""

Row = dict[str, Any]
Parser = Callable[[Path], Iterator[tuple[int, Row]]]


@dataclass(frozen=True)
class Split:
    """Where one split comes from. In the YAML a plain string stands for `files` alone.

    Fields left out are those of the whole benchmark; `hub_split` is the split's own name unless given.
    """

    files: str | Sequence[str]
    """Patterns of the local files' names, without suffix; the first one that matches anything is taken."""
    folder: str
    file_columns: Mapping[str, str] = field(default_factory=dict)
    """Our column: the local files' column, where they differ."""
    hub: str | None = None
    hub_config: str | None = None
    hub_revision: str | None = None
    hub_split: str | None = None
    hub_files: str | None = None
    """For a repository without a config: the data files to read in it."""
    hub_columns: Mapping[str, str] = field(default_factory=dict)
    """Our column: the Hub's column; a dot leads into a nested one (`en-zh.en`)."""
    sacrebleu: str | None = None
    """`test set/language pair` of sacrebleu, for `"wmt_from": "sacrebleu"`."""
    sample: int | None = None
    """How many rows to draw; which ones depends on their content only."""


def load(
    *,
    columns: Mapping[str, str],
    splits: Mapping[str, str | Mapping[str, Any]],
    data_dir: str | None = None,
    wmt_from: str = "hub",
    parse: Parser = read_rows,
    suffixes: Sequence[str] = ROW_SUFFIXES,
    folder: str,
    hub: str | None = None,
    hub_config: str | None = None,
    hub_revision: str | None = None,
    **_others: Any,
) -> Any:
    """Returns a `datasets.DatasetDict` with exactly `splits` and `columns` (a column and its JSON type).

    `data_dir` (relative to the current directory) is the benchmark's folder, or one that holds it as `folder`.
    `wmt_from` is `hub` or `sacrebleu`. The harness passes everything in a task's metadata, the model's arguments
    among it, so other keywords are let through.

    Raises `ArgumentError`; for local data with file and line.
    """
    from datasets import Dataset, DatasetDict

    end_lm_eval_in_one_line()
    if wmt_from not in ("hub", "sacrebleu"):
        raise ArgumentError(f"wmt_from must be 'hub' or 'sacrebleu', not {wmt_from!r}.")
    common = {"folder": folder, "hub": hub, "hub_config": hub_config, "hub_revision": hub_revision}
    loaded = {}
    for name, given in splits.items():
        split = Split(**{**common, **({"files": given} if isinstance(given, str) else given)})
        if data_dir is not None:
            rows = _from_folder(split, find_folder(data_dir, split.folder), columns, parse, suffixes)
            origin = f"{data_dir}, split {name!r}"
        elif wmt_from == "sacrebleu" and split.sacrebleu is not None:
            rows, origin = _from_sacrebleu(split.sacrebleu), f"sacrebleu {split.sacrebleu}"
        elif split.hub is not None:
            rows, origin = _from_hub(split, split.hub, name, columns), f"{split.hub}, split {name!r}"
        else:
            raise ArgumentError(
                f"{folder}: this benchmark is not on the Hub. Give the folder with its files: "
                f"""--metadata '{{"data_dir": "path/to/{folder}"}}'."""
            )
        if split.sample is not None:
            rows = draw(rows, split.sample)
        try:
            loaded[name] = rows if isinstance(rows, Dataset) else Dataset.from_list(rows)
        except (ValueError, TypeError) as error:  # pyarrow's errors are ValueErrors and TypeErrors
            raise ArgumentError(f"{origin}: the rows do not agree in their types: {error}") from error
    return DatasetDict(loaded)


def draw(rows: Sequence[Row], number: int) -> list[Row]:
    """`number` of the rows, in their order, chosen by the digests of their content: no random generator is involved."""
    digests = [hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest() for row in rows]
    chosen = sorted(range(len(rows)), key=digests.__getitem__)[:number]
    return [rows[index] for index in sorted(chosen)]


def _from_folder(
    split: Split, folder: Path, columns: Mapping[str, str], parse: Parser, suffixes: Sequence[str]
) -> list[Row]:
    files = find_files(folder, [split.files] if isinstance(split.files, str) else split.files, suffixes)
    rows = [
        _select(row, columns, split.file_columns, f"{path}, line {line}") for path in files for line, row in parse(path)
    ]
    if not rows:
        raise ArgumentError(f"{', '.join(map(str, files))}: no example in it. Is the file complete?")
    return rows


def _select(row: Row, columns: Mapping[str, str], renamed: Mapping[str, str], where: str) -> Row:
    chosen = {}
    for name, kind in columns.items():
        source = renamed.get(name, name)
        if source not in row:
            raise ArgumentError(f"{where}: no column {source!r}; it has {', '.join(map(str, row)) or 'none'}.")
        value = row[source]
        if not isinstance(value, JSON_TYPES[kind]) or isinstance(value, bool):
            raise ArgumentError(f"{where}: column {source!r} must be of type {kind}, not {type(value).__name__}.")
        chosen[name] = value
    return chosen


def _from_hub(split: Split, hub: str, name: str, columns: Mapping[str, str]) -> Any:
    """The split as a `Dataset`, its columns cut down to, and named like, the ones asked for."""
    from datasets import load_dataset

    wanted = split.hub_split or name
    files = {wanted: split.hub_files} if split.hub_files else None
    try:
        found = load_dataset(hub, name=split.hub_config, revision=split.hub_revision, data_files=files)
    except OSError as error:
        raise ArgumentError(
            f"{hub}, split {wanted}: cannot be read from the Hub ({error}). Check the connection, or give a copy: "
            f"""--metadata '{{"data_dir": "path/to/{split.folder}"}}'."""
        ) from error
    if wanted not in found:
        raise ArgumentError(f"{hub}: no split {wanted!r}; it has {', '.join(sorted(found))}. Is the revision right?")
    rows = found[wanted]
    for path in split.hub_columns.values():
        if "." in path and path not in rows.column_names and path.split(".")[0] in rows.column_names:
            rows = rows.flatten()
    sources = {column: split.hub_columns.get(column, column) for column in columns}
    missing = [source for source in sources.values() if source not in rows.column_names]
    if missing:
        raise ArgumentError(
            f"{hub}, split {wanted}: no column {', '.join(missing)}; it has {', '.join(rows.column_names)}. "
            "Is the revision right?"
        )
    if len(rows) == 0:
        raise ArgumentError(f"{hub}, split {wanted}: no example in it.")
    rows = rows.select_columns(list(sources.values()))
    return rows.rename_columns({source: column for column, source in sources.items() if source != column})


def _from_sacrebleu(name: str) -> list[Row]:
    """Source and first reference of a sacrebleu test set, which sacrebleu downloads to its own cache."""
    import sacrebleu

    test_set, pair = name.split("/")
    source = Path(sacrebleu.get_source_file(test_set, pair))
    reference = Path(sacrebleu.get_reference_files(test_set, pair)[0])
    texts = [path.read_text(encoding="utf-8").removesuffix("\n").split("\n") for path in (source, reference)]
    if len(texts[0]) != len(texts[1]):
        raise ArgumentError(
            f"{source} has {len(texts[0])} lines and {reference} {len(texts[1])}; remove {source.parent} to load anew."
        )
    return [{"source": one, "reference": other} for one, other in zip(*texts, strict=True)]
