"""The one table of options: what comes from it agrees with it, and what a user types wrongly is named."""

import dataclasses

import pytest

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.options import (
    EvaluationOptions,
    LoraDropArgs,
    TrainingOptions,
    answer_changing,
    declared,
    neutral,
    parse_model_args,
    read,
)
from lm_eval_lora_drop.sweep.candidates import candidates_of
from lm_eval_lora_drop.variant import AdapterShape
from tools.write_options import PAGE, TABLES, page

SHAPE = AdapterShape(6, ("q_proj", "up_proj"), 8)
OTHER = {"merge": True, "sweep_strategy": "racing", "sweep_engine": "plain", "sweep_log": "none", "sweep_seed": "1"}
"""Where a declaration has no example that differs from its default."""


def args(**given):
    return parse_model_args(given, ())[0]


def listed(tmp_path, text, **more):
    file = tmp_path / "ideas.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return args(sweep_candidates=f"@{file}", **more)


def test_the_page_of_options_is_made_from_the_declarations():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tools/write_options.py"
    assert "docs/reference/model_args.md" in (PAGE.parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "table", [table for _, _, table in TABLES[:2]] + [EvaluationOptions], ids=lambda one: one.__name__
)
def test_every_example_and_every_default_is_allowed(table):
    for one in declared(table).values():
        assert one.sentence
        assert one.rule
        if one.example:
            one.value(one.example)
        if one.default not in (None, ()) and isinstance(one.default, str | int | float):
            assert one.value(one.default) == one.default


def test_what_changes_an_answer_is_in_the_identity_and_nothing_else_is():
    before = answer_changing(args(sweep_dry_run=False))
    for name, one in declared(LoraDropArgs).items():
        if name in ("boundary", "layers"):
            continue
        value = OTHER.get(name) or (True if one.kind is bool else one.example)
        if name == "sweep_limit":
            value = 7
        changed = answer_changing(args(**{name: value})) != before
        assert changed == (name not in neutral(LoraDropArgs)), name
    # Where nothing is swept, no option of a sweep matters; the merge does.
    assert answer_changing(args(boundary=3)) == answer_changing(args(boundary=3, sweep_seed=4))
    assert answer_changing(args(boundary=3)) != answer_changing(args(boundary=3, merge=True))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"K": 3}, "boundary"),
        ({"k": 3}, "boundary"),
        ({"family": "upper"}, "sweep_candidates"),
        ({"candidates": "upper"}, "sweep_candidates"),
        ({"limit": 3}, "sweep_limit"),
        ({"dry-run": True}, "sweep_dry_run"),
        ({"bondary": 3}, "boundary"),
        ({"sweep_candidate": "upper"}, "sweep_candidates"),
    ],
)
def test_a_word_of_ours_under_another_name_is_answered_with_ours(given, meant):
    with pytest.raises(ArgumentError, match=f"Did you mean {meant}\\?"):
        parse_model_args(given, ())


def test_what_the_backend_knows_and_what_looks_like_nothing_of_ours_goes_on():
    rest = {"limit": 3, "attn_implementation": "eager"}
    assert parse_model_args(rest, {"limit"})[1] == rest


@pytest.mark.parametrize(
    ("table", "given", "message"),
    [
        (TrainingOptions, {"rank": 0}, "rank must be an integer of at least 1, got 0. Example: rank=8"),
        (TrainingOptions, {"rank": 10**400}, "rank must be an integer of at least 1, got a number of more than 18"),
        (TrainingOptions, {"epochs": float("inf")}, "epochs must be a number above 0, got inf"),
        (TrainingOptions, {"warmup": 1}, "warmup must be a number of at least 0 and below 1, got 1"),
        (TrainingOptions, {"long": "skipp"}, "long must be one of cut, skip, got 'skipp'. Did you mean long=skip"),
        (TrainingOptions, {"rnak": 8}, "there is no option rnak. Did you mean rank"),
        (TrainingOptions, {"gradient_checkpointing": "yes"}, "must be true or false, got 'yes'"),
        (EvaluationOptions, {"limit": [3]}, "limit must be an integer of at least 1 or a number above 0, got"),
        (LoraDropArgs, {"sweep_task": "\x1b[2J\0"}, r"got '\\\\u001b\[2J"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_its_rule(table, given, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        read(given, table)
    assert "\x1b" not in str(caught.value)


def test_numbers_as_yaml_and_a_terminal_write_them():
    given = {"learning_rate": "1e-4", "rank": "8", "epochs": 3, "target_modules": "q_proj,v_proj", "limit": None}
    found = read(given, TrainingOptions)
    assert found == {"learning_rate": 1e-4, "rank": 8, "epochs": 3.0, "target_modules": ("q_proj", "v_proj")}
    assert args(sweep_dir=2024).sweep_dir.name == "2024"


def test_a_list_of_variants_is_compared_with_full_and_base(tmp_path):
    found = candidates_of(
        listed(tmp_path, "# ideas\n\n1-5   # without the first\r\n0-2+4x0.5\n0-5.q_proj\n1-5\n"), SHAPE
    )
    assert {str(one) for one in found.variants} == {"0-5", "1-5", "0-2+4x0.5", "0-5.q_proj", "none"}
    assert found.variants[0].is_full
    assert (found.name, found.ordered) == ("@ideas.txt", False)


def test_a_list_for_several_adapters(tmp_path):
    shape = dataclasses.replace(SHAPE, adapters=("a", "b"))
    found = candidates_of(listed(tmp_path, "0-2\nb@3\nnone\n"), shape)
    assert {str(one) for one in found.variants} == {"a@0-5", "b@0-5", "a@0-2", "b@0-2", "b@3", "none"}
    with pytest.raises(ArgumentError, match=r"ideas.txt, line 1: there is no adapter c in peft, which has a, b"):
        candidates_of(listed(tmp_path, "c@0-2"), shape)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0-2\n2-\n", "ideas.txt, line 2: layers must be"),
        ("0-2\n\x1b[2J\n", r"ideas.txt, line 2: layers must be .*got '\\\\u001b|got '\\x1b"),
        ("# nothing\n", "ideas.txt lists no variant"),
        (b"0-2\n" * 300_000, "at most 1,048,576 bytes"),
        (b"\xff", "in UTF-8; byte 1 is not"),
        ("0-6\n", "ideas.txt, line 1: layers must lie in 0..5"),
    ],
)
def test_a_list_that_cannot_be_meant_is_named_with_file_and_line(tmp_path, text, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        candidates_of(listed(tmp_path, text), SHAPE)
    assert "\x1b" not in str(caught.value)


def test_another_distribution_adds_a_set_of_candidates(tmp_path, monkeypatch):
    """It imports nothing of ours: an entry point, and variants in the notation."""
    (tmp_path / "every_other.py").write_text(
        "def odd(shape):\n    yield '+'.join(str(i) for i in range(1, shape.num_layers, 2))\n"
    )
    info = tmp_path / "every_other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: every-other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lm_eval_lora_drop.candidates]\nodd = every_other:odd\n")
    with pytest.raises(ArgumentError, match="sweep_candidates must be one of boundary, upper"):
        candidates_of(args(sweep_candidates="odd"), SHAPE)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = candidates_of(args(sweep_candidates="odd"), SHAPE)
    assert [str(one) for one in found.variants] == ["0-5", "1+3+5", "none"]
