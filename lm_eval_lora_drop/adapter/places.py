"""Where the modules of a model act: its decoder layers, what runs before and after them, what a module is called."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lm_eval_lora_drop.errors import AdapterError


def find_decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder layers of a causal language model, whatever the architecture calls it.

    It is the outermost list with as many members as the configuration has layers, so that lists within a layer (the
    experts of a mixture) are not taken for it.

    Raises:
        AdapterError: the model has no such list.
    """
    number = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    lists = [(name.count("."), m) for name, m in model.get_decoder().named_modules() if isinstance(m, nn.ModuleList)]
    fitting = [(depth, module) for depth, module in lists if len(module) == number]
    if not fitting:
        raise AdapterError(
            f"{type(model).__name__} has no list of {number} decoder layers, so no boundary can be drawn. Evaluate it "
            "with --model hf."
        )
    return min(fitting, key=lambda pair: pair[0])[1]


def split_outside(
    model: PreTrainedModel, decoder_layers: nn.ModuleList, outside: Collection[nn.Module]
) -> tuple[list[nn.Module], list[nn.Module]]:
    """Of modules outside the decoder layers, those that act before layer 0 and those that act after layer L-1.

    Embedding and `lm_head` are known by themselves. For anything else (projections, norms) one forward over two tokens
    shows it: the order in which a model defines its modules need not be that in which it runs them. What does not run
    on text alone (a vision tower) feeds the layers, so it counts as before them.

    Raises:
        AdapterError: a module acts between two layers.
    """
    first = {id(module) for module in _modules_of(model.get_input_embeddings())}
    last = {id(module) for module in _modules_of(model.get_output_embeddings())}
    # A tied head may be the embedding's own module: it is one LoRA, and acts first as the embedding.
    below = [module for module in outside if id(module) in first]
    above = [module for module in outside if id(module) in last - first]
    unknown = [module for module in outside if id(module) not in first | last]
    if unknown:
        layers_before = _layers_run_before(model, decoder_layers, unknown)
        for module in unknown:
            when = layers_before.get(id(module), {0})
            if when == {0}:
                below.append(module)
            elif when == {len(decoder_layers)}:
                above.append(module)
            else:
                raise AdapterError(
                    f"The adapter has a module outside the decoder layers that acts between layers {min(when) - 1} and "
                    f"{min(when)} ({type(module).__name__}), so no boundary can be drawn. Evaluate it with --model hf."
                )
    return below, above


def _layers_run_before(
    model: PreTrainedModel, decoder_layers: nn.ModuleList, modules: Collection[nn.Module]
) -> dict[int, set[int]]:
    """id of a module -> how many decoder layers had run whenever it ran."""
    done = 0
    found: dict[int, set[int]] = {}

    def count(*_: Any) -> None:
        nonlocal done
        done += 1

    def note(module: nn.Module, *_: Any) -> None:
        found.setdefault(id(module), set()).add(done)

    embedding: Any = model.get_input_embeddings()
    device = next(embedding.parameters()).device
    was_training = model.training
    with ExitStack() as undo, torch.no_grad():
        undo.callback(model.train, was_training)
        for layer in decoder_layers:
            undo.callback(layer.register_forward_hook(count).remove)
        for module in modules:
            undo.callback(module.register_forward_pre_hook(note).remove)
        model.eval()
        model(input_ids=torch.zeros((1, 2), dtype=torch.long, device=device), use_cache=False)
    return found


def _modules_of(module: nn.Module | None) -> Iterator[nn.Module]:
    return iter(()) if module is None else module.modules()
