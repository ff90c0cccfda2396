import re
from pathlib import Path

import pytest

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness.arguments import check_given_once
from lm_eval_lora_drop.options import parse_model_args
from lm_eval_lora_drop.sweep.candidates import candidates_of
from lm_eval_lora_drop.variant import AdapterShape

KNOWN = ("pretrained", "peft", "dtype", "batch_size")


def take(**model_args):
    return parse_model_args(model_args, KNOWN)


def ks(args, num_layers):
    return [variant.boundary for variant in candidates_of(args, AdapterShape(num_layers)).variants]


def test_without_any_argument_the_boundary_is_searched_over_every_layer():
    args, rest = take(pretrained="p", peft="a", attn_implementation="eager")
    assert str(args.spec) == "boundary=auto"
    assert ks(args, 4) == [4, 3, 2, 1, 0]
    assert (args.sweep_limit, args.sweep_strategy, args.sweep_select, args.merge) == (100, "exhaustive", None, False)
    assert rest == {"pretrained": "p", "peft": "a", "attn_implementation": "eager"}


def test_arguments_come_as_the_harness_parses_them():
    args, _ = take(boundary="auto", sweep_boundaries="0-30:5", sweep_limit=16, sweep_metric="exact_match:strict-match")
    assert ks(args, 30) == [30, 25, 20, 15, 10, 5, 0]
    assert args.sweep_metric == "exact_match,strict-match"
    assert ks(take(sweep_boundaries=3)[0], 4) == [3]
    assert take(sweep_dir="~/x")[0].sweep_dir == Path.home() / "x"


@pytest.mark.parametrize(
    ("model_args", "message"),
    [
        ({"boundry": 4}, "no argument 'boundry' .*Did you mean boundary"),
        ({"sweep_foo": 4}, "There are: boundary, layers"),
        ({"boundary": 4, "layers": "0-3"}, "exclude each other"),
        ({"sweep_limit": 0}, "sweep_limit must be an integer of at least 1, got 0"),
        ({"sweep_limit": True}, "sweep_limit must be"),
        ({"sweep_strategy": "race"}, "exhaustive, racing, refine, got 'race'"),
        ({"sweep_select": "bset"}, "Did you mean sweep_select=best"),
        ({"sweep_engine": "fast"}, "one of auto, plain, shared, got 'fast'"),
        ({"sweep_batch_size": 0}, "at least 1 or auto"),
        ({"sweep_seed": -1}, "sweep_seed"),
        ({"sweep_metric": ""}, "sweep_metric must be a text, got ''"),
        ({"merge": "yes"}, "merge must be true or false or force, got 'yes'"),
        # The harness splits sweep_metric=exact_match,strict-match into two arguments.
        ({"sweep_metric": "exact_match", "strict-match": ""}, "sweep_metric=<metric>:<filter>"),
    ],
)
def test_what_cannot_be_meant_is_refused(model_args, message):
    with pytest.raises(ArgumentError, match=message):
        take(**model_args)


@pytest.mark.parametrize(
    "typed", ["boundary=2,dtype=auto,boundary=3", '{"boundary": 2, "dtype": "auto", "boundary": 3}'], ids=["=", "JSON"]
)
def test_an_argument_given_twice_is_refused_in_either_notation(typed):
    check_given_once([typed.replace("3", "2")], {"boundary": 2}, {})
    with pytest.raises(ArgumentError, match="gives boundary twice, 2 and 3"):
        check_given_once([typed], {"boundary": 3}, {})


def test_a_candidate_beyond_the_model_is_refused():
    args, _ = take(sweep_boundaries="0-31")
    with pytest.raises(ArgumentError, match="sweep_boundaries: .*0 to 30 .*got 31"):
        candidates_of(args, AdapterShape(30))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, auto or auto:N, got 0"),
        ({"batch_size": ""}, "batch_size must be an integer of at least 1, auto or auto:N, got ''."),
        ({"sweep_limit": -3.0}, "sweep_limit must be an integer of at least 1, got -3."),
        ({"sweep_seed": -1.0}, "sweep_seed must be an integer of at least 0, got -1."),
        ({"sweep_size": -1.0}, "sweep_size must be an integer of at least 0, got -1."),
    ],
)
def test_numbers_are_said_as_they_were_typed(given, message):
    """The harness makes -3.0 of -3, and of batch_size=0 something that Python takes for nothing."""
    with pytest.raises(ArgumentError, match=re.escape(message)):
        parse_model_args(given, {"batch_size"})
