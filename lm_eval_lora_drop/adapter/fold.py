"""LoRA as plain matrices: strengths, cut ranks and scalings in one rank and one alpha; and folded into weights.

LoRA adds s B A to a module's weight, A (r, inputs), B (outputs, r), s = alpha / r (rsLoRA: alpha / sqrt(r)). A
variant asks for c s B_k A_k, with a strength c and B_k A_k the best approximation of rank k. Programs other than PEFT
know one r and one alpha per adapter: vLLM and llama.cpp's converter pass over `rank_pattern` and `alpha_pattern`
without a word, and the converter over `use_rslora` too. So c and what differs in s go into B, and smaller ranks are
filled up with zeros.

Folded in, W + s B A is rounded to the dtype of W. Where a change is smaller than the spacing of numbers around W, most
of it is rounded away, so it is computed in single precision and rounded once, and what is left of it is measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate

from lm_eval_lora_drop.errors import AdapterError, ArgumentError


@dataclass(frozen=True)
class LoraPair:
    """One LoRA: A (r, inputs), B (outputs, r), perhaps a bias of B, and the scaling s it is applied with.

    `experts` counts what A and B hold side by side (`target_parameters` of a mixture); None for one LoRA.
    """

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    bias: torch.Tensor | None = None
    experts: int | None = None

    @property
    def rank(self) -> int:
        """r, of one expert where there are several."""
        return self.a.shape[0] // (self.experts or 1)

    def scaled(self, factor: float) -> LoraPair:
        """`factor` times the LoRA: B and its bias are multiplied, in single precision unless their own is exact."""
        if factor == 1:
            return self
        bias = None if self.bias is None else _times(self.bias, factor)
        return LoraPair(self.a, _times(self.b, factor), self.scaling, bias, self.experts)

    def cut(self, rank: int) -> LoraPair:
        """The best approximation of B A of this rank."""
        if rank >= self.rank:
            return self
        a, b = truncate(self.a.to(_exact(self.a)), self.b.to(_exact(self.b)), rank)
        return LoraPair(a, b, self.scaling, self.bias)

    def padded(self, rank: int) -> LoraPair:
        """The same LoRA with zeros up to this rank; s stays."""
        more = rank - self.rank
        if not more:
            return self
        a = torch.cat([self.a, self.a.new_zeros(more, *self.a.shape[1:])])
        b = torch.cat([self.b, self.b.new_zeros(self.b.shape[0], more, *self.b.shape[2:])], dim=1)
        return LoraPair(a, b, self.scaling, self.bias)


WARN_BELOW = 0.9
"""Survival below which a merge triggers a warning: the merged model is not the one that was evaluated."""
REFUSE_BELOW = 0.5
"""Survival below which a merge is refused unless it is asked for by name."""


@dataclass(frozen=True)
class Survival:
    """How much of a LoRA is left in weights of `dtype`: the projection of the stored change on the true one.

    1 where all of it is stored. `parts` has for each (decoder layer, kind of module) the products <stored, true> and
    <true, true> over its weights; None as layer stands for outside the layers.
    """

    dtype: str
    parts: Mapping[tuple[int | None, str], tuple[float, float]]

    @property
    def total(self) -> float:
        """Over all weights."""
        return projection(self.parts.values())

    @property
    def is_whole(self) -> bool:
        """Whether a table would hold nothing but 1.000."""
        return all(projection([part]) >= 0.9995 for part in self.parts.values())

    def table(self, style: str = "simple") -> str:
        """A line per layer, a column per kind of module, and both totals."""
        layers = list(dict.fromkeys(layer for layer, _ in self.parts))
        kinds = list(dict.fromkeys(kind for _, kind in self.parts))

        def cell(some_layers: Sequence[int | None], some_kinds: Sequence[str]) -> str:
            found = [self.parts[key] for key in itertools.product(some_layers, some_kinds) if key in self.parts]
            return f"{projection(found):.3f}" if found else ""

        rows = [
            ["outside" if layer is None else layer, *(cell([layer], [kind]) for kind in kinds), cell([layer], kinds)]
            for layer in layers
        ]
        rows.append(["all", *(cell(layers, [kind]) for kind in kinds), f"{self.total:.3f}"])
        return tabulate(rows, headers=["layer", *kinds, "all"], tablefmt=style, disable_numparse=True)

    def check(self, to_force: str, forced: bool) -> str | None:
        """What to say of a merge that loses a part of the LoRA; None where nearly all of it is left.

        Raises:
            ArgumentError: too little is left, and the user has not given `to_force`.
        """
        if self.total >= WARN_BELOW:
            return None
        lost = (
            f"only {self.total:.2f} of the LoRA is left in weights of {self.dtype} (projection of the stored change on "
            "the true one), so the merged model is another one than base and adapter side by side. Keep the adapter "
            "separate, or merge into float32 weights (dtype=float32)"
        )
        if self.total < REFUSE_BELOW and not forced:
            raise ArgumentError(f"{lost}; {to_force} merges all the same.")
        return f"{lost}."


def projection(products: Iterable[tuple[float, float]]) -> float:
    """The sum of <stored, true> over that of <true, true>; 1 where there is no true change."""
    pairs = list(products)  # none for the base model
    true = sum(one for _, one in pairs)
    return float(sum(stored for stored, _ in pairs) / true) if true else 1.0


@contextmanager
def folded(lora: Sequence[tuple[int | None, str, Any]], dtype: torch.dtype | None = None) -> Iterator[Survival]:
    """Within the context the LoRA of these modules is in the weights, as `fold` puts it there; restored bit for bit.

    Raises:
        AdapterError: a weight would not be finite.
    """
    saved = [
        {name: one.data.to("cpu", copy=True) for name, one in module.get_base_layer().named_parameters(recurse=False)}
        for *_, module in lora
    ]
    try:
        try:
            survival = fold(lora, dtype)
        except ValueError as error:
            raise AdapterError(f"The LoRA cannot be folded into the weights: {error}. Keep it separate.") from error
        yield survival
    finally:
        for (*_, module), copies in zip(lora, saved, strict=True):
            if module.merged:
                module.unmerge()
            for name, parameter in module.get_base_layer().named_parameters(recurse=False):
                parameter.data = copies[name].to(parameter.device)


def fold(lora: Sequence[tuple[int | None, str, Any]], dtype: torch.dtype | None = None) -> Survival:
    """Fold the active LoRA of these (layer, kind, LoraLayer) into their weights, rounded once to `dtype` (default: that
    of the weights).

    Raises:
        ValueError: a weight would not be finite.
    """
    parts: dict[tuple[int | None, str], tuple[float, float]] = {}
    for layer, kind, module in lora:
        # Modules of one layer may have one name (experts of a mixture).
        before, more = parts.get((layer, kind), (0.0, 0.0)), _fold_in(module, dtype)
        parts[layer, kind] = before[0] + more[0], before[1] + more[1]
    stored = dtype or (next(lora[0][2].get_base_layer().parameters()).dtype if lora else torch.float32)
    return Survival(str(stored).removeprefix("torch."), parts)


def _fold_in(module: Any, dtype: torch.dtype | None) -> tuple[float, float]:
    """The same of one module; returns the products <stored change, true change> and <true change, true change>."""
    # Weight and bias of a layer, or the parameters of a module of experts (`target_parameters`).
    parameters = [*module.get_base_layer().parameters(recurse=False)]
    before = [one.data for one in parameters]
    kind = dtype or before[0].dtype
    starts = [data.to(kind).to(torch.promote_types(kind, torch.float32)) for data in before]
    try:
        for parameter, start in zip(parameters, starts, strict=True):
            parameter.data = start.clone()
        module.merge(safe_merge=True)
        stored = true = 0.0
        for parameter, start in zip(parameters, starts, strict=True):
            rounded = parameter.data.to(kind)
            if not torch.isfinite(rounded).all():
                name = type(module.get_base_layer()).__name__
                raise ValueError(f"{kind} cannot hold the merged weights of a {name}")
            change = (parameter.data - start).double()
            stored += float(((rounded.double() - start.double()) * change).sum())
            true += float((change * change).sum())
            parameter.data = rounded
    except BaseException:
        for parameter, data in zip(parameters, before, strict=True):
            parameter.data = data
        raise
    return stored, true


def truncate(down: torch.Tensor, up: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best approximation of `up @ down` by a product of this rank (Eckart and Young, 1936), as (A, B).

    `down` is (r, in), `up` (out, r); returned are (rank, in) and (out, rank), each with roots of singular values.
    """
    # With both sides made orthogonal the SVD is one of an r x r matrix, not of out x in.
    out_basis, out_part = torch.linalg.qr(up.detach().cpu().double())
    in_basis, in_part = torch.linalg.qr(down.detach().cpu().double().T)
    left, values, right = torch.linalg.svd(out_part @ in_part.T)
    roots = values[:rank].sqrt()
    new_up = (out_basis @ left[:, :rank]) * roots
    new_down = roots[:, None] * (right[:rank] @ in_basis.T)
    return new_down.to(down), new_up.to(up)


def common_scaling(pairs: Sequence[LoraPair]) -> float:
    """The s that most have, so most B stay as they are; of equally many, the largest; 1 if all are 0."""
    found = [pair.scaling for pair in pairs if pair.scaling] or [1.0]
    return max(set(found), key=lambda scaling: (found.count(scaling), scaling))


def _times(tensor: torch.Tensor, factor: float) -> torch.Tensor:
    exact = tensor.double() * factor
    same = exact.to(tensor.dtype)
    # Half of a number has as many digits as the number.
    return same if torch.equal(same.double(), exact) else exact.to(_exact(tensor))


def _exact(tensor: torch.Tensor) -> torch.dtype:
    """PEFT computes 16-bit adapters in single precision: what is changed here is not rounded to 16 bits again."""
    return torch.promote_types(tensor.dtype, torch.float32)
