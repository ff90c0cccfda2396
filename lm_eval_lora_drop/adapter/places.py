"""Where the modules of a model act: its decoder layers, what runs before and after them, what a module is called."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from lm_eval_lora_drop.errors import AdapterError

Floats = NDArray[np.float64]


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


def last_states(model: PreTrainedModel, texts: Collection[Sequence[int]]) -> list[tuple[Floats, Floats]]:
    """The hidden states before and behind each decoder layer at the last token of each text, `(n, d)` each.

    Args:
        texts: token ids.
    """
    layers = find_decoder_layers(model)
    before: list[list[Floats]] = [[] for _ in layers]
    behind: list[list[Floats]] = [[] for _ in layers]

    def watch(layer: int) -> Any:
        def take(_: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> None:
            found = output[0] if isinstance(output, tuple) else output
            for states, to in ((args[0] if args else kwargs["hidden_states"], before), (found, behind)):
                to[layer].append(states[0, -1].double().cpu().numpy())

        return take

    handles = [one.register_forward_hook(watch(layer), with_kwargs=True) for layer, one in enumerate(layers)]
    try:
        device: Any = model.get_input_embeddings().weight.device
        with torch.inference_mode():
            for text in texts:
                model(input_ids=torch.tensor([list(text)], device=device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [(np.stack(one), np.stack(other)) for one, other in zip(before, behind, strict=True)]


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
    with ExitStack() as undo, torch.no_grad():
        for module in model.modules():
            undo.callback(setattr, module, "training", module.training)
        for layer in decoder_layers:
            undo.callback(layer.register_forward_hook(count).remove)
        for module in modules:
            undo.callback(module.register_forward_pre_hook(note).remove)
        model.eval()
        if device.type == "meta":
            undo.enter_context(_Unread())  # type: ignore[no-untyped-call]
        model(input_ids=torch.zeros((1, 2), dtype=torch.long, device=device), use_cache=False)
    return found


class _Unread(TorchDispatchMode):
    """On the meta device a tensor has no values to read: whatever a model asks of one (are there several texts in this
    row? is the mask all ones?) is answered with no. The order in which its modules run does not depend on it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return False
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, eq=False)
class TiedParameter:
    """A parameter `name` of `owner` that is tied to the parameter `part` of a module of `modules_to_save`.

    HFLM ties weights after the adapter is on. The head of a model with tied embeddings then is the *trained* embedding,
    which it must not be where the embedding's own training is dropped.
    """

    owner: nn.Module
    name: str
    part: str


def find_followers(model: nn.Module, wrappers: Iterable[Any]) -> dict[int, list[TiedParameter]]:
    """id of a wrapper (`modules_to_save`) -> what outside it is tied to what was trained in it."""
    found: dict[int, list[TiedParameter]] = {}
    for wrapper in wrappers:
        inside = {id(module) for module in wrapper.modules()}
        parts = {
            id(parameter): part
            for trained in wrapper.modules_to_save.values()
            for part, parameter in trained.named_parameters()
        }
        found[id(wrapper)] = [
            TiedParameter(owner, name, parts[id(parameter)])
            for owner in model.modules()
            if id(owner) not in inside
            for name, parameter in owner._parameters.items()
            if id(parameter) in parts
        ]
    return {key: followers for key, followers in found.items() if followers}


def tie_again(model: Any, source: str) -> None:
    """Tie the weights of a model with an adapter on it, as HFLM does; `source` names the adapter.

    Raises:
        AdapterError: that fails, as it does where an adapter has wrapped the tied head or trains tokens of the tied
            embedding.
    """
    try:
        model.tie_weights()
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise AdapterError(
            f"{source} changes the embedding or lm_head, which share one weight (tie_word_embeddings), and lm_eval "
            f"fails when it ties them again ({type(error).__name__}: {error}); --model hf fails too. Save the base "
            "model with its head untied and evaluate the adapter on that, or train it without them."
        ) from error


@contextmanager
def in_evaluation_mode(model: Any) -> Iterator[None]:
    """Within the context `model` is as HFLM makes it (`eval`, weights tied); afterwards as it was.

    Given back are the mode of every module and which parameter lies where; what is done to their values is not.

    Raises:
        AdapterError: as `tie_again`.
    """
    modes = [(module, module.training) for module in model.modules()]
    places = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
    ]
    try:
        model.eval()
        tie_again(model, "the adapter")
        yield
    finally:
        for module, training in modes:
            module.training = training
        for module, name, parameter in places:
            if module._parameters.get(name) is not parameter:
                setattr(module, name, parameter)


def _modules_of(module: nn.Module | None) -> Iterator[nn.Module]:
    return iter(()) if module is None else module.modules()
