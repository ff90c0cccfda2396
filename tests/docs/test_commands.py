"""Nothing in README and docs rots: each command is parsed by what would run it, each link leads somewhere.

No command is run here, and no model loaded: parsing says whether command, options and model_args exist.
"""

import inspect
import re
import shlex
import sys
from pathlib import Path

import pytest
from lm_eval._cli.harness import HarnessCLI
from lm_eval.models.huggingface import HFLM

from lm_eval_lora_drop.commands.main import make_parser
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.options import parse_model_args

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
# vLLM is not there where this runs; a name that it declares is passed on all the same unless it looks like one of ours.
KNOWN = {"hf-lora-drop": tuple(inspect.signature(HFLM.__init__).parameters), "vllm-lora-drop": ()}
PROGRAMS = ("lm_eval", "lora-drop")
REPOSITORY = re.search(r'^Repository = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]
OWN = rf"^(?:{REPOSITORY}/blob|{REPOSITORY.replace('github.com', 'raw.githubusercontent.com')})/main/"


def code(text):
    """The lines of code on a page, fenced for a shell or indented by four; continued lines joined."""
    lines, fence = [], None
    for line in text.split("\n"):
        opened = re.match(r"\s*```(\w*)", line)
        if opened:
            fence = None if fence is not None else opened[1]
            lines.append("")
        elif fence in ("bash", "console", "sh") or (fence is None and line.startswith("    ")):
            lines.append(line.strip())
        else:
            lines.append("")
    return re.sub(r"\\\n\s*", " ", "\n".join(lines)).split("\n")


def commands(text):
    """Every command of ours or of lm_eval on a page, as words; those with something left out (...) cannot be parsed."""
    found = []
    for line in code(text):
        line = re.sub(r"^(?:\$ )?(?:\w+=\S+ )*", "", line)
        # What may be left out is shown in brackets.
        words = re.sub(r" \[(--[\w-]+)\]", r" \1", line)
        if not re.match(r"(?:accelerate launch .*-m )?(?:lm_eval|lora-drop) ", words):
            continue
        words = shlex.split(words, comments=True)
        start = next(place for place, word in enumerate(words) if word in PROGRAMS)
        end = words.index(">") if ">" in words else None
        if not any("..." in word for word in words) and "|" not in words:
            found.append(words[start:end])
    return found


FOUND = [
    pytest.param(words, id=f"{page.relative_to(ROOT)}:{' '.join(words)[:60]}")
    for page in PAGES
    for words in commands(page.read_text(encoding="utf-8"))
]


def parse(words, monkeypatch):
    """Parse a command as its program would; SystemExit or ArgumentError where that would refuse it."""
    if words[0] == "lora-drop":
        return make_parser().parse_args(words[1:])
    monkeypatch.setattr(sys, "argv", list(words))
    args = HarnessCLI().parse_args()
    if getattr(args, "model", None) in KNOWN:
        parse_model_args(args.model_args or {}, KNOWN[args.model])
    return args


@pytest.mark.parametrize("words", FOUND)
def test_a_command_in_the_docs_is_one_that_exists(words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r"=@([\w.]+)", " ".join(words)):  # a file of candidates, which is read when it is named
        Path(name).write_text("0-14\n", encoding="utf-8")
    args = parse(words, monkeypatch)
    ours = {
        match[1]
        for file in (ROOT / "tasks").rglob("*.yaml")
        for match in re.finditer(r"^(?:task|group): (\S+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    named = words[words.index("--tasks") + 1].split(",") if "--tasks" in words else []
    named += [args.task] if isinstance(getattr(args, "task", None), str) else []
    assert {name for name in named if name.startswith("lora_drop_")} <= ours


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs" / "howto").glob("*.md"))], ids=str)
def test_a_page_with_commands_has_some_that_are_parsed(page):
    assert commands(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "command",
    [
        "lora-drop ablate --config grid.yaml",
        "lora-drop report out --outputt x.html",
        "lora-drop export --boundary 20",
        "lm_eval --model hf-lora-drop --model_args pretrained=a,peft=b,bondary=3 --tasks x",
        "lm_eval --model hf-lora-drop --model_args pretrained=a,peft=b,boundary=x --tasks x",
        "lm_eval --modell hf --tasks x",
    ],
)
def test_a_command_that_does_not_exist_is_noticed(command, monkeypatch):
    """The real parsers refuse what is misspelt, found in a page as the others are."""
    (words,) = commands(f"Text.\n\n```console\n$ {command}\n```\n")
    with pytest.raises((SystemExit, ArgumentError)):
        parse(words, monkeypatch)


def slug(heading):
    """The anchor of a heading, as GitHub and MkDocs make it."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def links(text):
    """The targets of all links and pictures that stay in the repository."""
    outside_code = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)|^\[[^]]+\]: (\S+)$", outside_code, re.MULTILINE)
    # README is shown on the package index too, where only full addresses lead somewhere.
    targets = [re.sub(OWN, str(ROOT) + "/", inline or defined) for inline, defined in found]
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def broken(page, text):
    """The links of a page that lead nowhere."""
    found = []
    for target in links(text):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists():
            found.append(target)
        elif anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            if anchor not in map(slug, headings):
                found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert broken(page, page.read_text(encoding="utf-8")) == []


def test_every_page_is_in_the_sites_menu():
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    named = set(re.findall(r": (\S+\.md)$", menu, re.MULTILINE))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page.name != "README.md"}
    # docs/hooks.py makes a page of a notebook.
    pages |= {
        page.relative_to(ROOT / "docs").with_suffix(".md").as_posix() for page in (ROOT / "docs").rglob("*.ipynb")
    }
    assert named == pages
