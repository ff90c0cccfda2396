"""backends/vllm.py where there is no vLLM: what it reads of itself exists. mypy does not know the class below it."""

import ast
import importlib.util
import inspect
from pathlib import Path
from typing import Any

from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

import lm_eval_lora_drop
from lm_eval_lora_drop.backends.base import LoraDropBase

SOURCE = Path(lm_eval_lora_drop.__file__).parent / "backends" / "vllm.py"


def class_of(source, name):
    """One class of a module that cannot be imported here."""
    return next(node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name)


def attributes_of_self(tree, context):
    """Names after `self.` that are read, or written."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
        and isinstance(node.ctx, context)
    }


def missing(source):
    """What our class reads of itself and nobody defines: it, LoraDropBase, the harness's VLLM or its TemplateLM."""
    from lm_eval.api.model import TemplateLM

    ours = class_of(source, "VllmLoraDropLM")
    found = importlib.util.find_spec("lm_eval.models.vllm_causallms")
    theirs = class_of(Path(found.origin).read_text(), "VLLM")
    known = {*dir(LoraDropBase), *inspect.get_annotations(LoraDropBase), *dir(TemplateLM)}
    for one in (ours, theirs, ast.parse(inspect.getsource(LoraDropBase))):
        known |= {node.name for node in ast.walk(one) if isinstance(node, ast.FunctionDef)}
        known |= attributes_of_self(one, ast.Store)
    return attributes_of_self(ours, ast.Load) - known


def test_every_attribute_it_reads_of_itself_exists():
    assert missing(SOURCE.read_text()) == set()


def test_one_that_does_not_exist_is_found():
    assert missing(SOURCE.read_text().replace("sweep_folder(args)", "self.sweep_folder()")) == {"sweep_folder"}


def test_vllm_is_asked_to_stop_at_special_tokens_and_to_keep_them_in_the_text():
    """What makes a special end token end an answer there (run in tests/vllm/test_stops.py): the harness hands vLLM the
    end of text with the task's stop sequences, and vLLM looks for them in a text that keeps special tokens."""
    found = importlib.util.find_spec("lm_eval.models.vllm_causallms")
    methods = class_of(Path(found.origin).read_text(), "VLLM").body
    (method,) = (node for node in methods if getattr(node, "name", "") == "modify_gen_kwargs")
    # Its module imports vLLM; the method does not need it.
    names = {"handle_stop_sequences": handle_stop_sequences, "normalize_gen_kwargs": normalize_gen_kwargs, "Any": Any}
    exec(compile(ast.Module([method], []), found.origin, "exec"), names)
    kwargs, stops, limit = names["modify_gen_kwargs"]({"until": ["<|im_end|>"], "max_gen_toks": 7}, eos="</s>")
    assert (stops, limit) == (["<|im_end|>", "</s>"], 7)
    assert kwargs["skip_special_tokens"] is False
