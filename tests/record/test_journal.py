"""The journal gives back what it was given, whatever happened to the file in between."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import check_writable
from lm_eval_lora_drop.harness.documents import Answer, Document
from lm_eval_lora_drop.record.journal import Journal
from lm_eval_lora_drop.variant import Variant

FINGERPRINT = "sha256:" + "0123456789ab" + "c" * 52
SETTINGS = {"adapter": {"path": "a", "fingerprint": "sha256:1"}, "dtype": "float32"}


def journal(folder: Path, fingerprint: str = FINGERPRINT, rank: int = 0, task: str = "toy", **settings: Any) -> Journal:
    return Journal(folder, fingerprint, task, rank=rank, settings={**SETTINGS, **settings})


def answer(boundary: int, doc_id: int, *responses: Any) -> Answer:
    request = Instance("generate_until", {}, ("prompt", {}), 0, ("toy", doc_id, 1))
    return Answer(
        Variant.below(boundary, 4), Document(doc_id, {}, (request,) * len(responses), f"key{doc_id}"), responses
    )


RESPONSES = [
    ("plain",),
    ("lines\nand\ttabs \u2028 \x85 \0",),
    ("汉字 🙂",),
    ("half a surrogate \ud83d",),
    ("",),
    ((-0.1 - 0.2, True), (-1e-320, False)),
    ((-math.inf, False), (math.nan, False)),
    (-12345.678901234567,),
]


def test_answers_come_back_exactly(tmp_path: Path) -> None:
    """Strings as they were, pairs as tuples, floats bit for bit, infinity and NaN too."""
    journal(tmp_path).append([answer(3, index, *responses) for index, responses in enumerate(RESPONSES)])
    found = journal(tmp_path).read()
    assert list(found) == [("0-2", f"key{index}") for index in range(len(RESPONSES))]
    for (_, came), given in zip(found.items(), RESPONSES, strict=True):
        assert repr(came) == repr(given)


def test_numpy_scalars_are_written_as_numbers(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    journal(tmp_path).append([answer(0, 0, (numpy.float64(-0.1), numpy.bool_(True)))])
    assert journal(tmp_path).read() == {("none", "key0"): ((-0.1, True),)}


def test_nothing_is_written_before_the_first_answer(tmp_path: Path) -> None:
    assert journal(tmp_path / "new").read() == {}
    assert not (tmp_path / "new").exists()


def test_files_of_all_ranks_are_read(tmp_path: Path) -> None:
    journal(tmp_path, rank=0).append([answer(1, 0, "a")])
    journal(tmp_path, rank=11).append([answer(1, 1, "b")])
    assert journal(tmp_path, rank=5).read() == {("0", "key0"): ("a",), ("0", "key1"): ("b",)}


@pytest.mark.parametrize("cut", [2, 5, 40])
def test_a_torn_last_line_is_dropped_and_the_next_append_is_sound(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cut: int
) -> None:
    path = journal(tmp_path).path
    journal(tmp_path).append([answer(1, 0, "first"), answer(1, 1, "汉字")])
    path.write_bytes(path.read_bytes()[:-cut])
    resumed = journal(tmp_path)
    assert resumed.read() == {("0", "key0"): ("first",)}
    assert "lines cannot be read" in caplog.text
    resumed.append([answer(1, 1, "again")])
    caplog.clear()
    assert journal(tmp_path).read() == {("0", "key0"): ("first",), ("0", "key1"): ("again",)}
    assert caplog.text == ""


@pytest.mark.parametrize(
    "changed",
    [
        lambda raw: raw.replace(b"\n", b"\r\n"),
        lambda raw: b"\xef\xbb\xbf" + raw,
        lambda raw: b"\xef\xbb\xbf" + raw.replace(b"\n", b"\r\n"),
        lambda raw: raw.replace(b"\n", b"\n\n"),
        lambda raw: raw + b"\r\n \n",
        lambda raw: raw[:-1],
        lambda raw: raw.replace(b"\n", b"\r\n")[:-2],
        lambda raw: raw.replace(b"\n", b"\r\n")[:-1],
    ],
    ids=["CRLF", "BOM", "both", "blank lines", "blank end", "no last LF", "no last CRLF", "half a CRLF"],
)
def test_what_editors_and_copies_do_to_a_file_loses_no_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changed: Callable[[bytes], bytes]
) -> None:
    journal(tmp_path).append([answer(3, index, *responses) for index, responses in enumerate(RESPONSES)], seconds=8.0)
    path = journal(tmp_path).path
    before = journal(tmp_path).read()
    path.write_bytes(changed(path.read_bytes()))
    resumed = journal(tmp_path)
    assert repr(resumed.read()) == repr(before)
    assert resumed.seconds_per_pair([f"key{index}" for index in range(len(RESPONSES))]) == 1.0
    resumed.append([answer(1, 99, "new")])
    assert repr(journal(tmp_path).read()) == repr({**before, ("0", "key99"): ("new",)})
    assert caplog.text == ""


def test_a_header_torn_by_a_kill_is_written_anew(tmp_path: Path) -> None:
    path = journal(tmp_path).path
    path.write_bytes(b'{"schema": 1, "ta')
    resumed = journal(tmp_path)
    assert resumed.read() == {}
    resumed.append([answer(1, 0, "a")])
    assert journal(tmp_path).read() == {("0", "key0"): ("a",)}


@pytest.mark.parametrize("garbage", [b"\xff\xfe", b"{}", b"[1]", b'{"boundary": 1, "key": "k"}'])
def test_a_corrupted_line_is_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, garbage: bytes
) -> None:
    journal(tmp_path).append([answer(1, 0, "a"), answer(1, 1, "b"), answer(1, 2, "c")])
    path = journal(tmp_path).path
    lines = path.read_bytes().split(b"\n")
    lines[2] = garbage
    path.write_bytes(b"\n".join(lines))
    assert journal(tmp_path).read() == {("0", "key0"): ("a",), ("0", "key2"): ("c",)}
    assert "1 of 3 lines cannot be read (the first is line 3; " in caplog.text


def test_another_setting_under_our_name_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    other = journal(tmp_path, "sha256:" + "f" * 64, adapter={"path": "b", "fingerprint": "sha256:2"})
    other.append([answer(1, 0, "a")])
    other.path.rename(journal(tmp_path).path)
    with pytest.raises(ArgumentError, match="sweep_dir") as caught:
        journal(tmp_path).read()
    assert "adapter.path: 'b' and 'a'" in str(caught.value)
    assert "adapter.fingerprint: 'sha256:2' and 'sha256:1'" in str(caught.value)
    assert "dtype" not in str(caught.value)


def test_another_schema_and_a_file_that_is_no_journal_are_refused(tmp_path: Path) -> None:
    path = journal(tmp_path).path
    body = b'{"schema": 99, "fingerprint": "x", "settings": {}'
    path.write_bytes(body + b', "crc": %d}\n' % zlib.crc32(body))
    with pytest.raises(ArgumentError, match="schema 1, got 99"):
        journal(tmp_path).read()
    path.write_text("shopping list\n")
    with pytest.raises(ArgumentError, match="header of a journal"):
        journal(tmp_path).read()


def test_journals_of_other_settings_are_left_alone_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lm_eval_lora_drop")
    for digit in "ef":
        journal(tmp_path, "sha256:" + digit * 64).append([answer(1, 0, "other")])
    journal(tmp_path, task="toy2").append([answer(1, 0, "other task")])
    assert journal(tmp_path).read() == {}
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}: 2 journals of toy under other settings are ignored"
    ]


def test_a_task_name_with_slashes_and_brackets_is_a_file_name(tmp_path: Path) -> None:
    made = journal(tmp_path / "[x]", task="group/na me[1]")
    made.append([answer(1, 0, "a")])
    assert made.path.parent == tmp_path / "[x]"
    assert journal(tmp_path / "[x]", task="group/na me[1]").read() == {("0", "key0"): ("a",)}


def test_a_folder_that_cannot_be_written_is_an_error_that_names_the_argument(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ArgumentError, match="sweep_dir must be a folder that can be written"):
        check_writable(tmp_path / "file" / "folder", "sweep_dir")
    with pytest.raises(ArgumentError, match="sweep_dir must be a folder that can be written"):
        journal(tmp_path / "file").append([answer(1, 0, "a")])
    check_writable(tmp_path / "new" / "folder", "sweep_dir")
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_a_symbolic_link_in_its_place_is_not_written_through(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    made = journal(tmp_path / "sweeps")
    made.folder.mkdir()
    made.path.symlink_to(precious)
    with pytest.raises(ArgumentError, match="sweep_dir must be a folder that can be written"):
        made.append([answer(1, 0, "a")])
    assert precious.read_text() == "mine"


def test_two_processes_that_start_at_once_write_one_header_and_lose_no_line(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.record.test_journal import answer, journal\n"
        "made = journal(Path(sys.argv[1]))\n"
        "for index in range(40): made.append([answer(1, int(sys.argv[2]) + index, 'x' * 3000)])\n"
    )
    root = Path(__file__).parents[2]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), start],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        for start in ("0", "100")
    ]
    assert [process.wait(120) for process in started] == [0, 0]
    lines = journal(tmp_path).path.read_bytes().split(b"\n")
    assert sum(b'"schema"' in line for line in lines) == 1
    assert len(journal(tmp_path).read()) == 80
