"""How much each decoder layer's LoRA matters, by the scores that others choose layers by, side by side.

    update_norm   Frobenius norm of what is added to the layer's weights, s B A of all its modules: from the files
    top_singular  share of that, squared, in the largest singular value of each module: from the files
    lora_output   squared norm of what the layer's LoRA adds to its modules' outputs on data, as a share of all layers'
                  (LoRA-drop, arXiv 2402.07721)
    cka_adapted   1 - linear CKA (Kornblith et al., 2019) of the hidden states behind the layer, base against adapted
    probe_rise    by how much the probability of the reference tokens, read through the logit lens, rises in the layer
                  (the curve behind boundary=probe)

Higher says that the layer matters more. Whether a score is a good guide to what may be dropped is a question for a
sweep (`sweep_candidates=scores`), not for the score.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from lm_eval_lora_drop.adapter.export import scalings
from lm_eval_lora_drop.adapter.files import AdapterFiles, load_tensors
from lm_eval_lora_drop.adapter.layers import AdapterLayers
from lm_eval_lora_drop.adapter.names import lora_products, read_names
from lm_eval_lora_drop.engine.probe.lens import Floats, read_layers
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness.model import EncodedReference, HarnessModel, encode
from lm_eval_lora_drop.statistics.alignment import linear_cka
from lm_eval_lora_drop.variant import Variant

TOKENS = 4
"""Reference tokens at whose positions hidden states and probabilities are read."""


def update_norms(files: AdapterFiles, num_layers: int) -> Floats:
    """`(L,)`: the root of the sum of ||s B A||^2 over the modules of each layer, without loading a model.

    Biases, magnitudes (DoRA) and modules that were trained whole are no part of it.
    """
    squares = np.zeros(num_layers)
    for layer, scaling, down, up in _products(files):
        # ||B A||^2 = tr((B'B)(A A')): r x r matrices instead of out x in.
        squares[layer] += scaling**2 * float(((up.T @ up) * (down @ down.T)).sum())
    return np.sqrt(squares)


def top_singular(files: AdapterFiles, num_layers: int) -> Floats:
    """`(L,)`: the sum of the largest squared singular value of s B A over the modules of each layer, as a share of the
    sum of all, without loading a model; 0 where the layer has no update.

    1 where every module moves its weights along one direction, 1 / r where it moves along r alike; of one module it is
    the reciprocal of the stable rank (Rudelson & Vershynin, 2007, Journal of the ACM 54(4)).
    """
    largest, total = np.zeros(num_layers), np.zeros(num_layers)
    for layer, squares in spectra(files):
        largest[layer] += squares[0]
        total[layer] += sum(squares)
    return largest / np.where(total > 0, total, 1.0)


def spectra(files: AdapterFiles) -> Iterator[tuple[int, list[float]]]:
    """Layer and squared singular values, the largest first, of every product s B A in the decoder layers."""
    for layer, scaling, down, up in _products(files):
        # With both sides made orthogonal, of an r x r matrix.
        values = scaling * torch.linalg.svdvals(torch.linalg.qr(up)[1] @ torch.linalg.qr(down.T)[1].T)
        yield layer, values.square().tolist()


def _products(files: AdapterFiles) -> Iterator[tuple[int, float, torch.Tensor, torch.Tensor]]:
    """Layer, scaling, A (r, in) and B (out, r), in float64, of every LoRA product in the decoder layers."""
    tensors = [tensor for tensor in read_names(files.shapes, files.config) if tensor.layer is not None]
    values = load_tensors(files)
    found = lora_products(tensors, files.source)
    scaling_of = scalings(files, [module for module, _ in found])
    for (module, _), parts in found.items():
        down, up = (values[parts[role].name].double().flatten(1) for role in "AB")
        yield parts["A"].layer or 0, scaling_of[module][1], down, up


def layer_scores(
    lm: HarnessModel, layers: AdapterLayers, pairs: Iterable[tuple[str, str]], files: AdapterFiles | None = None
) -> dict[str, Floats]:
    """Every score of every layer, `(L,)` each, on (prompt, reference) pairs; those of the update where there are
    `files`.

    Raises:
        ArgumentError: fewer than two documents have a reference.
    """
    pairs = list(pairs)
    documents = [found for pair in pairs if (found := encode(lm, *pair, TOKENS)) is not None]
    if len(documents) < 2:
        raise ArgumentError(
            f"scores of layers need at least two documents with a reference answer, got {len(documents)}. "
            "Raise the limit."
        )
    full, base = Variant.full(layers.num_layers), Variant.base(layers.num_layers)
    outputs = np.zeros(layers.num_layers)
    adapted, plain = [], []
    for document in documents:
        with layers.keep(full), _lora_outputs(layers) as squares:
            adapted.append(_states(layers, document))
            outputs += squares
        with layers.keep(base):
            plain.append(_states(layers, document))
    with layers.keep(full):
        # (N, L, T): the probability of the reference's tokens; NaN behind a short reference.
        readings = read_layers(layers, documents, TOKENS)[..., 0]
    curve = np.nanmean(np.nanmean(readings, axis=2), axis=0)
    distances = [
        1 - linear_cka(np.concatenate([one[layer] for one in plain]), np.concatenate([one[layer] for one in adapted]))
        for layer in range(layers.num_layers)
    ]
    total = outputs.sum()
    of_update = {}
    if files is not None:
        of_update = {
            "update_norm": update_norms(files, layers.num_layers),
            "top_singular": top_singular(files, layers.num_layers),
        }
    return of_update | {
        "lora_output": outputs / total if total else outputs,
        "cka_adapted": np.array(distances),
        "probe_rise": np.diff(curve, prepend=0.0),
    }


def _states(layers: AdapterLayers, document: EncodedReference) -> list[Floats]:
    """The hidden states behind each layer at the positions that predict the reference's tokens, `(T, d)` each."""
    taken: list[Floats] = []
    count = len(document.targets)

    def take(_: nn.Module, __: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        taken.append(hidden[0, -count:].double().cpu().numpy())

    handles = [layer.register_forward_hook(take) for layer in layers.decoder_layers]
    try:
        device = layers.model.get_input_embeddings().weight.device
        with torch.inference_mode():
            layers.model(input_ids=torch.tensor([list(document.inputs)], device=device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return taken


@contextlib.contextmanager
def _lora_outputs(layers: AdapterLayers) -> Iterator[Floats]:
    """Within the context, per layer the sum of squares of what its LoRA adds to its modules' outputs, `(L,)`."""
    squares = np.zeros(layers.num_layers)
    handles = []

    def watch(layer: int) -> Any:
        def add(module: Any, inputs: Sequence[torch.Tensor], output: Any) -> None:
            # The router of a mixture of experts gives several tensors, indices among them.
            both = (one if isinstance(one, tuple) else (one,) for one in (output, module.base_layer(*inputs)))
            for with_lora, without in zip(*both, strict=True):
                if isinstance(with_lora, torch.Tensor) and with_lora.is_floating_point():
                    squares[layer] += float((with_lora - without).double().square().sum())

        return add

    try:
        for layer, modules in enumerate(layers.modules):
            lora: list[Any] = [one for one in modules if isinstance(one, LoraLayer)]
            handles += [one.register_forward_hook(watch(layer)) for one in lora]
        yield squares
    finally:
        for handle in handles:
            handle.remove()
