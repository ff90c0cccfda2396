"""The names of a model's own inputs: whatever its forward calls the cache, and however that is hidden, it is shared.

The oracle is the plain pass of the same model with the forward that Transformers gives it.
"""

import functools
import inspect
import logging
import re
import warnings
from pathlib import Path

import pytest
import transformers

from lm_eval_lora_drop.engine.evaluated import decode_requests, why_left_to_harness
from lm_eval_lora_drop.engine.plain import plain_runner
from lm_eval_lora_drop.engine.session import Counters
from lm_eval_lora_drop.engine.shared import shared_runner, why_not_shared
from lm_eval_lora_drop.engine.states.arguments import TESTED
from lm_eval_lora_drop.sweep.backend import Work
from tests.engine.test_shared import EXAMPLES, answers, below, choosing, generating, load, same_numbers

ROOT = Path(__file__).parents[2]
NATIVE = transformers.LlamaForCausalLM.forward
NAME = next(name for name in ("cache", "past_key_values") if name in inspect.signature(NATIVE).parameters)


def native(model, cache, inputs):
    return NATIVE(model, **inputs, **{NAME: cache})


def new_name(self, input_ids=None, attention_mask=None, position_ids=None, cache=None, use_cache=None, **kwargs):
    return native(
        self, cache, {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids,
                      "use_cache": use_cache, **kwargs},
    )  # fmt: skip


def old_name(
    self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None, **kwargs
):
    return new_name(self, input_ids, attention_mask, position_ids, past_key_values, use_cache, **kwargs)


def strict_old_name(
    self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None,
    inputs_embeds=None, labels=None, output_attentions=None, output_hidden_states=None, return_dict=None,
):  # fmt: skip
    return new_name(self, input_ids, attention_mask, position_ids, past_key_values, use_cache)


def hiding(forward):
    """A decorator without functools.wraps."""

    def decorated(*args, **kwargs):
        return forward(*args, **kwargs)

    return decorated


def wrapped(forward):
    @functools.wraps(forward)
    def decorated(*args, **kwargs):
        return forward(*args, **kwargs)

    return decorated


def cache_in_kwargs(self, input_ids=None, attention_mask=None, position_ids=None, use_cache=None, **kwargs):
    """Takes the old name among its other arguments, and swallows the new one."""
    cache = kwargs.pop("past_key_values", None)
    kwargs.pop("cache", None)
    return new_name(self, input_ids, attention_mask, position_ids, cache, use_cache, **kwargs)


def a_switch_called_cache(
    self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, cache=True, use_cache=None,
    **kwargs,
):  # fmt: skip
    """`cache` is another argument, and no keys and values go there."""
    return new_name(self, input_ids, attention_mask, position_ids, past_key_values, use_cache, **kwargs)


def both_names(
    self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, cache=None, use_cache=None,
    **kwargs,
):  # fmt: skip
    if past_key_values is not None:
        warnings.warn("past_key_values is deprecated", FutureWarning, stacklevel=2)
    given = cache if cache is not None else past_key_values
    return new_name(self, input_ids, attention_mask, position_ids, given, use_cache, **kwargs)


def neither(self, input_ids=None, attention_mask=None, position_ids=None, **kwargs):
    others = {name: value for name, value in kwargs.items() if name not in {"use_cache", "cache", "past_key_values"}}
    return new_name(self, input_ids, attention_mask, position_ids, None, False, **others)


def strict_neither(
    self, input_ids=None, attention_mask=None, position_ids=None, inputs_embeds=None, labels=None,
    output_attentions=None, output_hidden_states=None, return_dict=None,
):  # fmt: skip
    return neither(self, input_ids, attention_mask, position_ids)


def a_cache_left_empty(self, input_ids=None, attention_mask=None, position_ids=None, cache=None, **kwargs):
    """As xLSTM: what it calls cache holds other states, and keys and values never get there."""
    return neither(self, input_ids, attention_mask, position_ids, **kwargs)


def refusing_logits_to_keep(self, input_ids=None, **kwargs):
    if "logits_to_keep" in kwargs:
        raise TypeError("forward() got an unexpected keyword argument 'logits_to_keep'")
    return old_name(self, input_ids, **kwargs)


SHARED = {
    "new": new_name,
    "old": old_name,
    "old, strict": strict_old_name,
    "new, hidden": hiding(new_name),
    "old, strict, hidden": hiding(strict_old_name),
    "old, hidden twice": hiding(hiding(old_name)),
    "old, hidden, refusing logits_to_keep": hiding(refusing_logits_to_keep),
    "old, in kwargs": cache_in_kwargs,
    "another argument called cache": a_switch_called_cache,
    "both": both_names,
}
PLAIN = {
    "neither": neither,
    "neither, strict": strict_neither,
    "left empty": a_cache_left_empty,
}


@pytest.fixture(scope="module")
def expected(tiny_base, tiny_adapter):
    lm = load(tiny_base, tiny_adapter)
    return [answers(plain_runner(lm, lm.layers), work) for work in asked()]


def asked():
    """Behind a common beginning, so that the prefix is read by itself."""
    return [
        [Work(document, below(0, 2, 4)) for document in docs] for docs in (generating(EXAMPLES), choosing(EXAMPLES))
    ]


@pytest.mark.parametrize("name", SHARED)
def test_the_cache_is_given_under_the_model_s_own_name(monkeypatch, tiny_base, tiny_adapter, expected, name):
    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", SHARED[name])
    lm = load(tiny_base, tiny_adapter)
    counters = Counters()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        for work in asked():
            assert why_not_shared(lm, lm.layers, [item.document for item in work]) is None
        generated, chosen = (answers(shared_runner(lm, lm.layers, None, counters), work) for work in asked())
    assert counters.fell_back is None
    assert generated == expected[0]
    same_numbers(expected[1], chosen)


@pytest.mark.parametrize("name", PLAIN)
def test_a_signature_that_is_not_known_is_said_to_be(monkeypatch, tiny_base, tiny_adapter, expected, name):
    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", PLAIN[name])
    lm = load(tiny_base, tiny_adapter)
    docs = generating(EXAMPLES)
    reason = why_not_shared(lm, lm.layers, docs)
    assert reason == why_left_to_harness(lm, [docs[0].requests[0]])
    assert reason == (
        "LlamaForCausalLM.forward() has no KV-cache argument known to this version: it fills neither cache= nor "
        f"past_key_values= (tested with transformers {TESTED[0]} to {TESTED[1]}, installed {transformers.__version__})"
    )
    same_numbers(expected[1], answers(plain_runner(lm, lm.layers), asked()[1]))


def test_our_calls_use_no_deprecated_name(tiny_base, tiny_adapter, expected):
    """Transformers warns of the old name by `warnings` (arguments) and by its own logger (outputs)."""
    said = []
    handler = logging.Handler()
    handler.emit = said.append
    transformers.utils.logging.get_logger("transformers").addHandler(handler)
    logging.Logger.warning_once.cache_clear()
    lm = load(tiny_base, tiny_adapter)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            generated, chosen = (answers(shared_runner(lm, lm.layers), work) for work in asked())
            decoded = decode_requests(lm, [item.document.requests[0] for item in asked()[0]])
    finally:
        transformers.utils.logging.get_logger("transformers").removeHandler(handler)
    assert [record.getMessage() for record in said] == []
    assert generated == expected[0]
    assert decoded == [expected[0][4, number][0] for number in range(len(decoded))]
    same_numbers(expected[1], chosen)


REMOTE = """
from transformers import LlamaForCausalLM

class OwnLlama(LlamaForCausalLM):
    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None, **kwargs
    ):
        return super().forward(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache,
            **{"NAME": past_key_values}, **kwargs,
        )
"""


def test_code_of_the_model_s_own_keeps_the_old_name(tmp_path, tiny_base, tiny_adapter, expected):
    """Loaded as users load it, with trust_remote_code."""
    for file in tiny_base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "modeling_own.py").write_text(REMOTE.replace("NAME", NAME), encoding="utf-8")
    config = transformers.LlamaConfig.from_pretrained(tmp_path)
    config.auto_map = {"AutoModelForCausalLM": "modeling_own.OwnLlama"}
    config.save_pretrained(tmp_path)
    lm = load(tmp_path, tiny_adapter, trust_remote_code=True)
    assert type(lm.model.get_base_model()).__name__ == "OwnLlama"
    counters = Counters()
    assert why_not_shared(lm, lm.layers, generating()) is None
    generated, chosen = (answers(shared_runner(lm, lm.layers, None, counters), work) for work in asked())
    assert counters.fell_back is None
    assert generated == expected[0]
    same_numbers(expected[1], chosen)


def test_the_tested_versions_are_those_of_the_project_s_files():
    lowest = re.findall(r'"transformers>=([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    newest = re.findall(r"^transformers==([\d.]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    assert (*lowest, *newest) == TESTED
