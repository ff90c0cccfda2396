"""Logit lens (nostalgebraist, 2020): what a model would predict if it stopped after a decoder layer.

The reading at layer i is the model's own final norm and `lm_head`, with whatever scaling, cap or bias the model's
forward applies, to the output of decoder layer i. Nothing of that is written again here: hooks collect the layers'
outputs at the few positions that matter, and the last layer's hook hands all of them on as if they were its own
output, so that the model itself reads them. The reading at layer L-1 is therefore the model's output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.hooks import RemovableHandle

from lm_eval_lora_drop.adapter.layers import AdapterLayers
from lm_eval_lora_drop.harness.model import EncodedReference

Floats = NDArray[np.float64]

MEASURES = ("probability", "max_probability", "rank", "entropy")
"""The last axis of a reading: probability of the reference token, largest probability, rank of the reference token
(1 is the most probable), entropy in nats."""

# Logits in one forward pass, as float32: 256 MB. A document of Gemma (26 layers, 4 tokens, 256,000 words) needs 106.
_MOST_LOGITS = 2**26


def read_layers(layers: AdapterLayers, documents: Sequence[EncodedReference], tokens: int) -> Floats:
    """Read every decoder layer with the LoRA that is kept now.

    Returns:
        `(N, L, T, 4)`: document, layer, position in the reference, measure (`MEASURES`); NaN where a reference has
        fewer than T = `tokens` tokens.
    """
    readings = np.full((len(documents), layers.num_layers, tokens, len(MEASURES)), np.nan)
    for start, stop in _batches(layers, documents, tokens):
        for index, reading in enumerate(_read(layers, documents[start:stop]), start):
            readings[index, :, : reading.shape[1]] = reading
    return readings


def _batches(layers: AdapterLayers, documents: Sequence[EncodedReference], tokens: int) -> Iterator[tuple[int, int]]:
    vocabulary = layers.model.get_output_embeddings().weight.shape[0]
    size = max(1, _MOST_LOGITS // (layers.num_layers * tokens * vocabulary))
    for start in range(0, len(documents), size):
        yield start, min(start + size, len(documents))


def _read(layers: AdapterLayers, documents: Sequence[EncodedReference]) -> Iterator[Floats]:
    """One forward pass; yields `(L, T, 4)` per document, T its own number of tokens."""
    device = layers.model.get_input_embeddings().weight.device
    longest = max(len(document.inputs) for document in documents)
    # Padded on the right, where causal attention lets nothing see it; a document alone gets no padding and no mask.
    ids = torch.zeros((len(documents), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, document in enumerate(documents):
        ids[row, : len(document.inputs)] = torch.tensor(document.inputs)
        mask[row, : len(document.inputs)] = 1
    counts = [len(document.targets) for document in documents]
    rows = torch.repeat_interleave(torch.arange(len(documents)), torch.tensor(counts))
    columns = torch.cat(
        [
            torch.arange(len(document.inputs) - count, len(document.inputs))
            for document, count in zip(documents, counts, strict=True)
        ]
    )
    padded = {} if len(documents) == 1 else {"attention_mask": mask.to(device)}
    with torch.inference_mode(), _reading(layers.decoder_layers, rows, columns):
        logits = layers.model(input_ids=ids.to(device), use_cache=False, **padded).logits
        read = layers.num_layers * len(rows)
        logits = logits.reshape(-1, logits.shape[-1])[:read].float()
        targets = torch.tensor([token for document in documents for token in document.targets], device=logits.device)
        measures = _measure(logits, targets.repeat(layers.num_layers))
    measures = measures.reshape(layers.num_layers, len(rows), len(MEASURES))
    for part in torch.split(measures, counts, dim=1):
        yield part.double().cpu().numpy()


def _measure(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """`(R, V)` logits and `(R,)` tokens to `(R, 4)` measures."""
    own = logits.gather(1, targets[:, None])
    rank = 1 + (logits > own).sum(dim=1)
    probabilities = logits.softmax(dim=1)
    entropy = torch.special.entr(probabilities).sum(dim=1)
    own_probability = probabilities.gather(1, targets[:, None])[:, 0]
    return torch.stack([own_probability, probabilities.amax(dim=1), rank.to(logits.dtype), entropy], dim=1)


@contextmanager
def _reading(decoder_layers: nn.ModuleList, rows: torch.Tensor, columns: torch.Tensor) -> Iterator[None]:
    """Within the context the last layer's output is every layer's output at the positions (`rows`, `columns`)."""
    collected: list[torch.Tensor] = []

    def collect(_: nn.Module, __: Any, output: Any) -> None:
        collected.append(_hidden(output)[rows.to(_hidden(output).device), columns.to(_hidden(output).device)])

    def hand_over(module: nn.Module, inputs: Any, output: Any) -> Any:
        collect(module, inputs, output)
        hidden = _hidden(output)
        states = torch.cat([state.to(hidden.device) for state in collected])
        collected.clear()
        # Some models give what comes after the layers the shape of their input (GPT-2), so the sequence length stays.
        length = hidden.shape[1]
        fill = states.new_zeros((-len(states) % length, states.shape[1]))
        states = torch.cat([states, fill]).view(-1, length, states.shape[1])
        return (states, *output[1:]) if isinstance(output, tuple) else states

    handles: list[RemovableHandle] = []
    try:
        handles.extend(layer.register_forward_hook(collect) for layer in decoder_layers[:-1])
        handles.append(decoder_layers[-1].register_forward_hook(hand_over))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hidden(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output
