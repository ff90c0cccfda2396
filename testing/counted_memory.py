"""How many bytes tensors hold at most while something runs: an allocator that counts, for devices that have none."""

from __future__ import annotations

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class CountedMemory(TorchDispatchMode):
    """Within this mode `peak` is the most bytes that storages made within it held together.

    A storage counts from the operation that returns a tensor on it until the first operation after its last tensor is
    gone. What a kernel takes and gives back while it runs is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {self._key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        new = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor) and self._key(leaf) not in given]
        if new:  # nothing else can raise the peak
            self._alive = {key: one for key, one in self._alive.items() if not one[0].expired()}
            for storage in (leaf.untyped_storage() for leaf in new):
                self._alive.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
            self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return out

    @staticmethod
    def _key(tensor: torch.Tensor) -> int:
        return tensor.untyped_storage()._cdata
