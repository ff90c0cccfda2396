"""The processes of one evaluation, joined by torch.distributed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed


@dataclass(frozen=True)
class TorchPeers:
    """Rank and size of an `accelerate launch`; one process where there is none."""

    rank: int
    world_size: int

    @property
    def has_silent_ones(self) -> bool:
        """Whether processes compute with this one that the harness does not count (tensor parallelism): they do
        nothing more once the harness has its answers."""
        there = torch.distributed.is_available() and torch.distributed.is_initialized()
        return there and torch.distributed.get_world_size() > self.world_size

    def all_gather_object(self, obj: Any) -> list[Any]:
        """The objects of all ranks, in the order of their ranks, on every rank.

        Raises:
            RuntimeError: another process has ended.
        """
        if self.world_size <= 1:
            return [obj]
        gathered: list[Any] = [None] * self.world_size
        try:
            torch.distributed.all_gather_object(gathered, obj)
        except RuntimeError as error:
            raise RuntimeError(
                f"process {self.rank} of {self.world_size} lost the others ({error}). One of them has ended: look for "
                "its message. What was answered so far is in the journal; start the same command again to go on."
            ) from error
        return gathered
