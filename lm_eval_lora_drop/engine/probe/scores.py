"""How much each decoder layer's LoRA matters, by the scores that others choose layers by, side by side.

    update_norm   Frobenius norm of what is added to the layer's weights, s B A of all its modules: from the files
    top_singular  share of that, squared, in the largest singular value of each module: from the files
    lora_output   norm of what the layer's LoRA adds to its modules' outputs on data (LoRA-drop, arXiv 2402.07721)
    cka_distance  1 - linear CKA (Kornblith et al., 2019) of the hidden states behind the layer, base against adapted
                  (the seed of arXiv 2602.05988)
    probe_rise    by how much the probability of the reference tokens, read through the logit lens, rises in the layer
                  (the curve behind boundary=probe)
    fisher        mean square of the slope of the reference's log-likelihood along the strength of the layer's LoRA
                  (Theis et al., 2018, arXiv 1801.05787)

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
from lm_eval_lora_drop.adapter.names import read_names
from lm_eval_lora_drop.engine.probe.lens import Floats, read_layers
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness.model import EncodedReference, HarnessModel, encode
from lm_eval_lora_drop.text import logger
from lm_eval_lora_drop.variant import Variant

log = logger(__name__)

TOKENS = 4
"""Reference tokens at whose positions hidden states and probabilities are read."""
FISHER_TOKENS = 64
"""Reference tokens whose log-likelihood is differentiated: whole answers mostly, and no book in memory."""


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
    for layer, scaling, down, up in _products(files):
        # With both sides made orthogonal, of an r x r matrix.
        values = scaling * torch.linalg.svdvals(torch.linalg.qr(up)[1] @ torch.linalg.qr(down.T)[1].T)
        largest[layer] += float(values.square().max())
        total[layer] += float(values.square().sum())
    return largest / np.where(total > 0, total, 1.0)


def _products(files: AdapterFiles) -> Iterator[tuple[int, float, torch.Tensor, torch.Tensor]]:
    """Layer, scaling, A (r, in) and B (out, r), in float64, of every LoRA product in the decoder layers."""
    tensors = [tensor for tensor in read_names(files.shapes, files.config) if tensor.layer is not None and tensor.part]
    values = load_tensors(files)
    found: dict[tuple[str, int], dict[str, torch.Tensor]] = {}
    layer_of: dict[str, int] = {}
    for tensor in tensors:
        if tensor.part in ("lora_A", "lora_B") and tensor.value != "bias":
            found.setdefault((tensor.module, tensor.depth), {})[tensor.part] = values[tensor.name].double()
            layer_of[tensor.module] = tensor.layer if tensor.layer is not None else 0
    scaling_of = scalings(files, [module for module, _ in found])
    for (module, _), pair in found.items():
        yield layer_of[module], scaling_of[module][1], pair["lora_A"].flatten(1), pair["lora_B"].flatten(1)


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
            outputs += np.sqrt(squares)
        with layers.keep(base):
            plain.append(_states(layers, document))
    with layers.keep(full):
        # (N, L, T): the probability of the reference's tokens; NaN behind a short reference.
        readings = read_layers(layers, documents, TOKENS)[..., 0]
        slopes = _fisher_if_it_can(
            layers, [found for pair in pairs if (found := encode(lm, *pair, FISHER_TOKENS)) is not None]
        )
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
        "cka_distance": np.array(distances),
        "probe_rise": np.diff(curve, prepend=0.0),
        **slopes,
    }


def _fisher_if_it_can(layers: AdapterLayers, documents: Sequence[EncodedReference]) -> dict[str, Floats]:
    """The score, or none where the model has no gradients (kernels of a quantised base, say).

    Raises:
        ArgumentError: the backward pass does not fit: on one process, perhaps, and all must score the same candidates.
    """
    try:
        return {"fisher": fisher(layers, documents)}
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ArgumentError(
            "the layer score `fisher` takes a backward pass of one document, and the memory ran out. Take a smaller "
            "model or dtype, more memory, or another sweep_candidates."
        ) from error
    # NotImplementedError among them: what a kernel without a backward pass raises, nobody can list.
    except RuntimeError as error:
        log.warning("the layer score `fisher` is left out: the backward pass failed (%s)", error)
        return {}


def fisher(layers: AdapterLayers, documents: Sequence[EncodedReference]) -> Floats:
    """`(L,)`: the mean over documents of the squared derivative of the reference's log-likelihood (nats, the sum over
    its tokens) with respect to a factor on what the layer's LoRA adds to its modules' outputs, at 1, where it is the
    full adapter. 0 where a layer has no LoRA.

    Half of it is the second-order estimate of what dropping the layer costs in log-likelihood near an optimum: the
    Fisher pruning of Theis, Korshunova, Tejani & Huszar (2018, Faster gaze prediction with dense networks and Fisher
    pruning, arXiv 1801.05787), with a layer's LoRA in place of a feature map. Takes a backward pass per
    document, one at a time.

    Raises:
        RuntimeError: the model has no gradients, or a part of it lets none through.
    """
    squares = np.zeros(layers.num_layers)
    device = layers.model.get_input_embeddings().weight.device
    for document in documents:
        factors = torch.ones(layers.num_layers, requires_grad=True)
        scaled, watched = _scaled_outputs(layers, factors), _gradients_pass(layers.model)
        with torch.inference_mode(mode=False), torch.enable_grad(), scaled, watched:
            inputs = torch.tensor([list(document.inputs)], device=device)
            logits = layers.model(input_ids=inputs, use_cache=False).logits[0, -len(document.targets) :].float()
            targets = torch.tensor(document.targets, device=logits.device)
            loglikelihood = logits.log_softmax(dim=-1).gather(1, targets[:, None]).sum()
            (slopes,) = torch.autograd.grad(loglikelihood, factors)
        squares += slopes.double().square().numpy()
    return squares / len(documents)


def linear_cka(one: Floats, other: Floats) -> float:
    """Linear centred kernel alignment of two representations of the same `n` inputs, `(n, d)` and `(n, e)`: 1 where one
    is a rotation and scaling of the other; NaN where one is constant.

    HSIC of the linear kernels by its Gram matrices, n x n (Kornblith et al., 2019, Similarity of Neural Network
    Representations Revisited, equation 3 with the biased estimator).
    """
    grams = []
    for states in (one, other):
        centred = states - states.mean(axis=0)
        grams.append(centred @ centred.T)
    first, second = grams
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / scale if scale else float("nan")


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


def _parts(output: Any) -> Sequence[Any]:
    """What a module gives back: the router of a mixture of experts gives several tensors, indices among them."""
    return output if isinstance(output, tuple) else (output,)


def _added(module: Any, inputs: Sequence[torch.Tensor], output: Any) -> list[torch.Tensor | None]:
    """What a module's LoRA adds to each part of its output; None for indices and the like."""
    return [
        one - base if isinstance(one, torch.Tensor) and one.is_floating_point() else None
        for one, base in zip(_parts(output), _parts(module.base_layer(*inputs)), strict=True)
    ]


@contextlib.contextmanager
def _scaled_outputs(layers: AdapterLayers, factors: torch.Tensor) -> Iterator[None]:
    """Within the context what the LoRA of layer i adds to its modules' outputs is times `factors[i]`, which are 1: only
    their derivatives matter."""

    def scale(layer: int) -> Any:
        def change(module: Any, inputs: Sequence[torch.Tensor], output: Any) -> Any:
            # Times a factor less 1, which is 0: how it depends on the layers below is in the output itself.
            with torch.no_grad():
                added = _added(module, inputs, output)
            changed = [
                one if more is None else one + (factors[layer] - 1) * more
                for one, more in zip(_parts(output), added, strict=True)
            ]
            return tuple(changed) if isinstance(output, tuple) else changed[0]

        return change

    handles = []
    try:
        for layer, modules in enumerate(layers.modules):
            lora: list[Any] = [one for one in modules if isinstance(one, LoraLayer)]
            handles += [one.register_forward_hook(scale(layer)) for one in lora]
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _gradients_pass(model: nn.Module) -> Iterator[None]:
    """Within the context a module that makes states of states and leaves their gradient behind raises: some kernels of
    quantised weights do, and the residual stream around them would carry the rest to a wrong score.

    Raises:
        NotImplementedError: naming the module's class.
    """

    def check(module: nn.Module, inputs: Sequence[Any], output: Any) -> None:
        states = next((one for one in inputs if isinstance(one, torch.Tensor)), None)
        if states is None or not (
            states.requires_grad and torch.is_grad_enabled() and isinstance(output, torch.Tensor)
        ):
            return
        if output.is_floating_point() and output.shape[:-1] == states.shape[:-1] and not output.requires_grad:
            raise NotImplementedError(f"{type(module).__name__} computes without gradients")

    # Innermost modules: what stands around them only passes on.
    handles = [one.register_forward_hook(check) for one in model.modules() if not any(one.children())]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _lora_outputs(layers: AdapterLayers) -> Iterator[Floats]:
    """Within the context, per layer the sum of squares of what its LoRA adds to its modules' outputs, `(L,)`."""
    squares = np.zeros(layers.num_layers)
    handles = []

    def watch(layer: int) -> Any:
        def add(module: Any, inputs: Sequence[torch.Tensor], output: Any) -> None:
            for added in _added(module, inputs, output):
                if added is not None:
                    squares[layer] += float(added.double().square().sum())

        return add

    try:
        for layer, modules in enumerate(layers.modules):
            lora: list[Any] = [one for one in modules if isinstance(one, LoraLayer)]
            handles += [one.register_forward_hook(watch(layer)) for one in lora]
        yield squares
    finally:
        for handle in handles:
            handle.remove()
