"""Strengths, cut ranks and differing scalings as plain matrices: one rank and one alpha for a whole adapter.

LoRA adds s B A to a module's weight, A (r, inputs), B (outputs, r), s = alpha / r (rsLoRA: alpha / sqrt(r)). A
variant asks for c s B_k A_k, with a strength c and B_k A_k the best approximation of rank k. Programs other than PEFT
know one r and one alpha per adapter: vLLM and llama.cpp's converter pass over `rank_pattern` and `alpha_pattern`
without a word, and the converter over `use_rslora` too. So c and what differs in s go into B, and smaller ranks are
filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


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
    """The s that most have, so that most B can stay as they are; of equally many, the largest."""
    found = [pair.scaling for pair in pairs]
    return max(set(found), key=lambda scaling: (found.count(scaling), scaling))


def _times(tensor: torch.Tensor, factor: float) -> torch.Tensor:
    exact = tensor.double() * factor
    same = exact.to(tensor.dtype)
    # Half of a number has as many digits as the number.
    return same if torch.equal(same.double(), exact) else exact.to(_exact(tensor))


def _exact(tensor: torch.Tensor) -> torch.dtype:
    """PEFT computes 16-bit adapters in single precision: what is changed here is not rounded to 16 bits again."""
    return torch.promote_types(tensor.dtype, torch.float32)
