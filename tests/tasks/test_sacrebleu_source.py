"""WMT from sacrebleu's own test sets: its download, its cache and its XML, with a test set of our own making."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sacrebleu.dataset import DATASETS
from sacrebleu.dataset.wmt_xml import WMTXMLDataset

XML = """<?xml version='1.0' encoding='utf-8'?>
<dataset id="{name}"><collection id="general"><doc origlang="en" id="d1">
<src lang="en"><p><seg id="1">Good morning.</seg><seg id="2">See you  tomorrow ({name}).</seg></p></src>
<ref lang="zh" translator="refA"><p><seg id="1">早上好。</seg><seg id="2">明天见。</seg></p></ref>
<hyp system="other" language="zh"><p><seg id="1">x</seg><seg id="2">y</seg></p></hyp>
</doc></collection></dataset>"""


@pytest.fixture
def test_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """wmt22 and wmt23 as small archives on a file:// address, cached below `tmp_path`."""
    for name in ("wmt22", "wmt23"):
        xml = tmp_path / f"{name}.en-zh.all.xml"
        xml.write_text(XML.format(name=name), encoding="utf-8")
        archive = tmp_path / f"{name}.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(xml, arcname=f"release/xml/{xml.name}")
        test_set = WMTXMLDataset(
            name,
            data=[archive.as_uri()],
            md5=[hashlib.md5(archive.read_bytes()).hexdigest()],
            langpairs={"en-zh": [f"release/xml/{xml.name}"]},
            refs=["refA"],
        )
        test_set._outdir = str(tmp_path / "cache" / name)
        test_set._rawdir = str(tmp_path / "cache" / name / "raw")
        monkeypatch.setitem(DATASETS, name, test_set)


def test_from_sacrebleu(test_sets: None, load_task: Callable[..., Any]) -> None:
    """`"wmt_from": "sacrebleu"` reads wmt22 for validation and wmt23 for the test."""
    task = load_task("lora_drop_wmt23_en_zh", wmt_from="sacrebleu")
    assert task.dataset["test"].to_list() == [
        {"source": "Good morning.", "reference": "早上好。"},
        {"source": "See you tomorrow (wmt23).", "reference": "明天见。"},
    ]
    assert task.dataset["validation"][1]["source"] == "See you tomorrow (wmt22)."
