"""What a user's files may look like, and what is said when they cannot be used."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import read_rows
from lm_eval_lora_drop.metrics.data import draw, load

COLUMNS = {"question": "string", "answer": "string"}
SPLITS = {"train": "train*", "test": "test*"}
LINE = json.dumps({"question": "Où ?", "answer": "là", "id": 7}, ensure_ascii=False)


def read(folder: Path):
    return load(columns=COLUMNS, splits=SPLITS, folder="quiz", data_dir=str(folder))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a good file for each split."""
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(LINE + "\n", encoding="utf-8")
    return tmp_path


def test_only_the_columns_asked_for(folder: Path) -> None:
    """Other columns are dropped, so that both sources have the same schema."""
    assert read(folder)["test"].to_list() == [{"question": "Où ?", "answer": "là"}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("test.jsonl", (LINE + "\r\n" + LINE + "\r\n").encode()),
        ("test.jsonl", b"\xef\xbb\xbf" + (LINE + "\n\n" + LINE).encode()),  # byte-order mark, blank line, no last LF
        ("test.jsonl.gz", gzip.compress((LINE + "\n" + LINE + "\n").encode())),
        ("test.tsv", "question\tanswer\tid\r\nOù ?\tlà\t7\r\nOù ?\tlà\t7\r\n".encode()),
        ("test.tsv.gz", gzip.compress("answer\tquestion\nlà\tOù ?\nlà\tOù ?\n".encode())),
    ],
    ids=["CRLF", "BOM and blank line", "gzip", "TSV with CRLF", "TSV gzip"],
)
def test_forms_of_files(folder: Path, name: str, content: bytes) -> None:
    """Line ends, compression and layout make no difference to the rows."""
    (folder / "test.jsonl").unlink()
    (folder / name).write_bytes(content)
    assert read(folder)["test"].to_list() == [{"question": "Où ?", "answer": "là"}] * 2


def test_unicode_separators_do_not_end_a_line(tmp_path: Path) -> None:
    """U+2028 and U+0085 stand inside texts; only LF ends a line."""
    text = "one\u2028two\x85three"
    (tmp_path / "a.jsonl").write_text(json.dumps({"t": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [row["t"] for _, row in read_rows(tmp_path / "a.jsonl")] == [text]


def test_several_files_in_the_order_of_their_names(folder: Path) -> None:
    """A split cut into parts is read as one."""
    (folder / "test.jsonl").unlink()
    for part in (2, 1):
        line = json.dumps({"question": str(part), "answer": ""})
        (folder / f"test-{part}.jsonl").write_text(line + "\n", encoding="utf-8")
    assert read(folder)["test"]["question"] == ["1", "2"]


def test_one_data_dir_for_a_group(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A folder that holds the benchmark's folder serves as well."""
    above = tmp_path_factory.mktemp("above")
    folder.rename(above / "quiz")
    assert len(read(above)["test"]) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LINE.encode() + b'\n{"question": "x"\n', r"test\.jsonl, line 2: no JSON \(.*column"),
        (LINE.encode() + b"\n[1]\n", r"test\.jsonl, line 2: each line must be a JSON object, not list"),
        (LINE.encode() + b'\n{"question": "x"}\n', r"test\.jsonl, line 2: no column 'answer'; it has question"),
        (b'{"question": "x", "answer": null}', r"line 1: column 'answer' must be of type string, not NoneType"),
        (b'{"question": "x", "answer": 3}', r"line 1: column 'answer' must be of type string, not int"),
        (LINE.encode() + b'\n{"question": "\xff"}\n', r"test\.jsonl, line 2: not UTF-8 \(byte 15 of the line\)"),
        (b"", r"test\.jsonl: no example in it"),
        (b"\n \n", r"test\.jsonl: no example in it"),
    ],
    ids=["malformed", "no object", "column missing", "null", "wrong type", "bad UTF-8", "empty", "blank"],
)
def test_a_bad_line_is_named(folder: Path, content: bytes, message: str) -> None:
    """The message has the file, the line and what is wrong."""
    (folder / "test.jsonl").write_bytes(content)
    with pytest.raises(ArgumentError, match=message):
        read(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    """The message has what was looked for and what is there."""
    (folder / "test.jsonl").unlink()
    with pytest.raises(ArgumentError, match=r"no file test\* ending in \.jsonl.*the folder has train\.jsonl"):
        read(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """A relative path is shown as the absolute one it stands for."""
    with pytest.raises(ArgumentError, match=r"must be a folder.*/nowhere is not a directory"):
        read(Path("nowhere"))


@pytest.mark.parametrize("content", [b"no gzip at all", gzip.compress(LINE.encode() * 100)[:-20]], ids=["no", "torn"])
def test_a_broken_gzip_file_is_named(folder: Path, content: bytes) -> None:
    """Neither a false suffix nor a torn download passes."""
    (folder / "test.jsonl").unlink()
    (folder / "test.jsonl.gz").write_bytes(content)
    with pytest.raises(ArgumentError, match=r"test\.jsonl\.gz: no complete gzip file"):
        read(folder)


def test_a_torn_table_is_named(folder: Path) -> None:
    """A row with more or fewer cells than the header."""
    (folder / "test.jsonl").unlink()
    (folder / "test.tsv").write_text("question\tanswer\nx\n", encoding="utf-8")
    with pytest.raises(ArgumentError, match=r"test\.tsv, line 2: 1 cells where the header has 2"):
        read(folder)


def test_rows_of_different_types(folder: Path) -> None:
    """Nested values that do not agree cannot become one table."""
    (folder / "test.jsonl").write_text('{"context": {"a": 1}}\n{"context": {"a": "x"}}\n', encoding="utf-8")
    with pytest.raises(ArgumentError, match="split 'test': the rows do not agree in their types"):
        load(columns={"context": "object"}, splits={"test": "test*"}, folder="quiz", data_dir=str(folder))


def test_what_a_draw_depends_on() -> None:
    """A draw of n rows is a part of a draw of more, keeps their order, and does not follow the order given."""
    rows = [{"n": number} for number in range(100)]
    ten = draw(rows, 10)
    assert len(ten) == 10
    assert ten == sorted(ten, key=lambda row: row["n"])
    assert all(row in draw(rows, 20) for row in ten)
    assert sorted(draw(rows[::-1], 10), key=lambda row: row["n"]) == ten
    assert draw(rows, 1000) == rows


def test_unknown_source() -> None:
    """`wmt_from` has two values."""
    with pytest.raises(ArgumentError, match="wmt_from must be 'hub' or 'sacrebleu', not 'wmt'"):
        load(columns=COLUMNS, splits=SPLITS, folder="quiz", wmt_from="wmt")
