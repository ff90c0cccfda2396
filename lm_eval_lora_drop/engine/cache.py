"""Keys and values of the states of a `Tree`, in buffers in which states branch, grow and leave without moving the rest.

Transformers' `DynamicCache` copies everything at every step to append one token, and has as many rows in every layer.
Here each layer holds its own states, a token is written in place, and when the batch changes only what changed is
copied. Rows of one document share the prompt below their boundaries, so their prompt is not stored once per boundary.
All states end at the same column, shorter ones begin later. Sliding-window layers keep all tokens; the model's own mask
hides them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from lm_eval_lora_drop.engine.tree import NONE, Tree

SPARE_COLUMNS = 32


class RowLayer(DynamicLayer):
    """Keys and values of one layer, (states, heads, columns, head size): slot s of the tree lies at `middle + s`."""

    def __init__(self, cache: RowCache, index: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cache = cache
        self.index = index
        self.buffers: list[torch.Tensor] = []
        self.middle = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append a token to every state; returns all keys and values so far, lowest slot first."""
        start, stop = self.cache.start, self.cache.stop
        before, after = self._sides()
        states = slice(self.middle - before, self.middle + after)
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[states, :, stop : stop + new.shape[2]] = new
        keys, values = (buffer[states, :, start : stop + key_states.shape[2]] for buffer in self.buffers)
        return keys, values

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self.cache.stop - self.cache.start

    def take(self, slots: torch.Tensor, states: Sequence[torch.Tensor]) -> None:
        """Write prompts (keys, values) into these slots, ending at the newest column."""
        self.reserve(states)
        begin = self.cache.stop - states[0].shape[2]
        for buffer, new in zip(self.buffers, states, strict=True):
            buffer[slots + self.middle, :, self.cache.start : begin] = 0
            buffer[slots + self.middle, :, begin : self.cache.stop] = new

    def clear(self, columns: slice) -> None:
        """Zeros in these columns of every state."""
        before, after = self._sides()
        for buffer in self.buffers:
            buffer[self.middle - before : self.middle + after, :, columns] = 0

    def move(self, slots: torch.Tensor, origins: torch.Tensor) -> None:
        """Copy states from slot to slot, all at once."""
        self.reserve(self.buffers)
        columns = slice(self.cache.start, self.cache.stop)
        for buffer in self.buffers:
            buffer[slots + self.middle, :, columns] = buffer[origins + self.middle, :, columns]

    def reserve(self, like: Sequence[torch.Tensor]) -> None:
        """Room for the tree's states, and some that part from a trunk later on."""
        before, after = self._sides()
        if self.buffers and before <= self.middle and after <= self.buffers[0].shape[0] - self.middle:
            return
        columns = slice(self.cache.start, self.cache.stop)
        self.rebuild(like, max(self.middle, before + before // 2), after, self.cache.columns, columns, columns)

    def rebuild(
        self, like: Sequence[torch.Tensor], before: int, after: int, columns: int, source: slice, target: slice
    ) -> None:
        """New buffers of this size with the old content, its columns `source` at `target`."""
        old, self.buffers = self.buffers, []
        after = max(after, old[0].shape[0] - self.middle if old else 0)
        for number, states in enumerate(like):
            buffer = states.new_empty((before + after, states.shape[1], columns, states.shape[3]))
            if old:
                buffer[before - self.middle : before - self.middle + len(old[number]), :, target] = old[number][
                    :, :, source
                ]
                old[number] = buffer
            self.buffers.append(buffer)
        self.middle = before

    def _sides(self) -> tuple[int, int]:
        tree = self.cache.tree
        return int(tree.with_lora[self.index]), int(tree.without_lora[self.index])


class RowCache(Cache):
    """One `RowLayer` for each decoder layer; columns `start` to `stop` are in use."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.start = 0
        self.stop = 0
        self.columns = 0
        self.rows = [RowLayer(self, index) for index in range(tree.num_layers)]
        super().__init__(layers=list(self.rows))

    def make_room(self, prompt: int) -> int:
        """Make `stop` at least `prompt`, with a column behind it; returns by how much the columns in use moved."""
        if prompt <= self.stop < self.columns:
            return 0
        length = self.stop - self.start
        start = max(0, prompt - length)
        columns = start + length + max(SPARE_COLUMNS, length // 4)
        source, target = slice(self.start, self.stop), slice(start, start + length)
        for layer in self.rows:
            if layer.buffers:
                layer.rebuild(layer.buffers, layer.middle, 0, columns, source, target)
        moved = start - self.start
        self.start, self.stop, self.columns = start, start + length, columns
        return moved

    def begin_at(self, start: int) -> None:
        """Lower `start` to this column, if it is higher.

        The columns won are before the begin of every state that is in, and the mask hides them. But they are undefined
        memory, and what is hidden is multiplied by zero, which leaves NaN as it is.
        """
        if start < self.start:
            for layer in self.rows:
                layer.clear(slice(start, self.start))
            self.start = start

    def take(self, prompts: DynamicCache, tree: Tree, theirs: Sequence[int], ours: Sequence[int]) -> None:
        """Write the prompts of rows `theirs` of another tree into the slots of rows `ours`."""
        for index, layer in enumerate(self.rows):
            source: Any = prompts.layers[index]
            slots, origins = self.tree.slot[ours, index], tree.slot[theirs, index]
            own = slots != NONE
            device = source.keys.device
            places = torch.from_numpy(origins[own] + tree.with_lora[index]).to(device)
            layer.take(torch.from_numpy(slots[own]).to(device), (source.keys[places], source.values[places]))

    def settle(self) -> None:
        """Carry out what the tree has moved."""
        for layer, (slots, origins) in zip(self.rows, self.tree.moves(), strict=True):
            if len(slots):
                device = layer.buffers[0].device
                layer.move(torch.from_numpy(slots).to(device), torch.from_numpy(origins).to(device))
