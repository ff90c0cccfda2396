"""Where files are, and a user's data files line by line, so that whatever is wrong can be named with file and line."""

from __future__ import annotations

import gzip
import json
import os
import re
import stat
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from lm_eval_lora_drop.errors import ArgumentError

LONGEST_YAML = 256 << 10
_MOST_NODES = 20_000
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
ROW_SUFFIXES = (".jsonl", ".jsonl.gz", ".tsv", ".tsv.gz")


def package_folder(name: str) -> Path:
    """The folder `tasks` or `configs`: inside the installed package, or at the top of a checkout."""
    here = Path(__file__).resolve().parent
    inside = here / name
    return inside if inside.is_dir() else here.parent / name


def user_path(text: str | os.PathLike[str], name: str) -> Path:
    """What a user wrote as the argument `name`, `~` and `~user` undone.

    Raises:
        ArgumentError: a NUL character, or a user that does not exist.
    """
    if "\0" in str(text):
        raise ArgumentError(f"{name} must be a path, got one with a NUL character. Retype it.")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ArgumentError(f"{name} must be a path, got {str(text)[:80]}: no such user.") from error


def is_folder(path: Path) -> bool:
    """As `Path.is_dir`, and False for a name that no file system can hold."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def why_not_ours(path: Path, root: Path) -> str | None:
    """Why a file found below `root` is not read, None where it is an ordinary file that lies there.

    A pipe would be waited on for ever, a device never ends, and a link may lead to somebody's private file whose text
    would then stand in a report.
    """
    try:
        if not path.resolve().is_relative_to(root.resolve()):
            return f"is a link out of {root}; left out. Name the file itself to read it."
        if not stat.S_ISREG(path.stat().st_mode):
            return "is no ordinary file (a folder, pipe or device); left out."
    except (OSError, ValueError, RuntimeError) as error:
        return f"cannot be read ({getattr(error, 'strerror', None) or error}); left out."
    return None


def read_text(path: Path, what: str, *, most: int = 16 << 20) -> str:
    """A user's file as text. `what` names it in messages ("a study, YAML").

    Raises:
        ArgumentError: no ordinary file, longer than `most` bytes, not UTF-8, or it cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ArgumentError(f"{path} must be a file ({what}), got a folder, pipe or device.")
        with path.open("rb") as file:
            raw = file.read(most + 1)
    except ArgumentError:
        raise
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{path} must be {what}; it cannot be read ({_reason(error)}).") from error
    if len(raw) > most:
        raise ArgumentError(f"{path} must be {what} of at most {most:,} bytes; it is longer.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ArgumentError(
            f"{path} must be {what} in UTF-8; byte {error.start + 1} is not. Convert the file."
        ) from error


def read_yaml(path: Path, what: str) -> Any:
    """A user's YAML file as plain data.

    YAML names a part once and uses it many times, so that a few lines can stand for thousands of millions: what it
    stands for, written out, is bounded as well.

    Raises:
        ArgumentError: as `read_text`, or no YAML.
    """
    text = read_text(path, what, most=LONGEST_YAML)
    try:
        data = yaml.load(text, Loader=_Loader)  # noqa: S506  the safe loader, in C where there is one
        left = _MOST_NODES
        todo = [data]
        while todo:
            node = todo.pop()
            parts = (
                list(node) + list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
            )
            left -= 1 + len(parts)
            if left < 0:
                raise ArgumentError(f"{path} must be {what}; it stands for more than {_MOST_NODES:,} values.")
            todo += parts
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f"{path} cannot be read as YAML ({' '.join(str(error).split())[:300]}).") from error
    return data


def check_writable(folder: Path, name: str) -> None:
    """Make `folder`, which the option `name` gave, and write a file into it: before the work, not after it.

    Raises:
        ArgumentError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        raise ArgumentError(
            f"{name} must be a folder that can be written, got {folder} ({_reason(error)}). Give another one."
        ) from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file as a whole or not at all: a kill or a full disk leaves what stood there before.

    The folder is made. Text is written as UTF-8; a lone surrogate (a byte that was not UTF-8 when it was read) as that
    byte again, and one that never was a byte as a question mark.

    Raises:
        ArgumentError: it cannot be written.
    """
    raw = content if isinstance(content, bytes) else _encoded(content)
    scratch: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A link stays a link: what it leads to is replaced.
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            raise ArgumentError(f"{path} cannot be written: it is a folder, pipe or device. Name a file.")
        handle, name = tempfile.mkstemp(prefix=".lora-drop-", suffix=".part", dir=target.parent)
        scratch = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp gives the owner alone access; a new file gets what the umask says, as with open().
        mask = os.umask(0)
        os.umask(mask)
        scratch.chmod(stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~mask)
        os.replace(scratch, target)
    except (OSError, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f"{path} cannot be written ({_reason(error)}). Name another place.") from error
    finally:
        if scratch is not None:
            scratch.unlink(missing_ok=True)


def _encoded(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def find_folder(data_dir: str, folder: str) -> Path:
    """`data_dir` itself, or its subfolder `folder`: one `data_dir` then serves a group of tasks."""
    path = user_path(data_dir, "data_dir")
    if not is_folder(path):
        raise ArgumentError(
            f"data_dir must be a folder with the benchmark's files; {path.absolute()} is not a directory."
        )
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
            f"peft names {len(sources)} adapters, which are called by the last part of their paths, and two of "
            f"these are alike: {', '.join(names)}. Give the folders different names."
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
        if not stat.S_ISREG(path.stat().st_mode):
            raise ArgumentError(f"{path} must be a file, got a folder, pipe or device.")
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
    except (OSError, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f"{path}: cannot be read ({_reason(error)}).") from error


def _parse_json(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ArgumentError(f"{where}: no JSON ({error.msg}, column {error.colno}).") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets thousands deep
        raise ArgumentError(f"{where}: no JSON that can be read ({str(error)[:80]}).") from error
    if not isinstance(row, dict):
        raise ArgumentError(f"{where}: each line must be a JSON object, not {type(row).__name__}.")
    return row
