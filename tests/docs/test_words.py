"""Generated pages equal what generates them; the checker of words finds what it is for, and nothing in the texts."""

import json
import re

import pytest

from tests.docs.test_commands import REPOSITORY, ROOT
from tools import check_words, write_reference


@pytest.mark.parametrize("path", write_reference.PAGES, ids=lambda path: path.name)
def test_a_generated_page_is_made_from_the_code(path):
    assert path.read_text(encoding="utf-8") == write_reference.PAGES[path](), "run python tools/write_reference.py"


def test_the_texts_of_the_project_pass(capsys):
    assert check_words.main() == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It keeps the whole adapter.", "whole adapter"),
        ("This cannot be\ntold from noise.", "cannot be told"),
        ("X is none, so it stops.", "is none"),
        ("where there is none", None),
        ("one that is none of these", None),
        ("`the whole adapter` in code", None),
        ("```text\nthe whole adapter\n```", None),
        ("    the whole adapter", None),
    ],
)
def test_a_word_is_found_in_prose_only(text, found):
    problems = [problem for _, problem in check_words.wrong_words(check_words.prose(text))]
    assert [problem.split(":")[0] for problem in problems] == ([repr(found)] if found else [])


def test_a_docstring_and_a_message_are_read_and_a_name_is_not():
    source = 'def hopeless():\n    """Whoever calls it."""\n    raise ValueError(f"{hopeless} is none.")\n'
    found = dict(check_words.wrong_words(check_words.literals(source)))
    assert sorted(found) == [2, 3]


def test_a_notebooks_texts_and_outputs_are_read_and_its_code_is_not():
    cells = [
        {"cell_type": "markdown", "source": ["The whole\n", "adapter."]},
        {"cell_type": "code", "source": ["whole_adapter = 'whole adapter'"], "outputs": []},
        {"cell_type": "code", "source": [], "outputs": [{"text": ["told from"]}, {"data": {"text/html": ["is none"]}}]},
    ]
    found = check_words.wrong_words(check_words.notebook(json.dumps({"cells": cells})))
    assert [number for number, _ in found] == [1, 3, 3]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("    lora-drop train --batch_size 4", ["--batch_size"]),
        ("    lora-drop train --batch-size 4", []),
        ("    lm_eval --model hf --batch_size 4", []),
        ("    lora-drop report out --x_y  # and lm_eval --log_samples", ["--x_y", "--log_samples"]),
    ],
)
def test_an_option_with_an_underscore_is_found(line, found):
    assert [problem.split(":")[0] for _, problem in check_words.wrong_options(line)] == found


def test_headings_have_one_title_no_full_stop_and_no_gap():
    assert list(check_words.wrong_headings("# A\n\n## B\n\n### C\n\n## D\n")) == []
    assert len(list(check_words.wrong_headings("# A.\n\n### C\n\n# E\n"))) == 3


def test_every_file_that_names_the_repository_names_the_same_one():
    named = [ROOT / name for name in ("README.md", "CITATION.cff", "SECURITY.md", "mkdocs.yml", "pyproject.toml")]
    named += [*(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.yml")]
    own = REPOSITORY.removeprefix("https://github.com/")
    name = own.partition("/")[2]
    found = {
        (file.name, match[1])
        for file in named
        for match in re.finditer(rf"github(?:usercontent)?\.com/([\w-]+/{name})\b", file.read_text(encoding="utf-8"))
    }
    assert {repository for _, repository in found} == {own}
    assert {"README.md", "CITATION.cff", "pyproject.toml"} <= {file for file, _ in found}
