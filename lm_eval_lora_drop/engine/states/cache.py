"""Keys and values of the states of a `Tree`, in buffers in which states branch, grow and leave without moving the rest.

Transformers' `DynamicCache` copies everything at every step to append one token, and has as many rows in every layer.
Here each layer holds its own states, a token is written in place, and when the batch changes only what changed is
copied. Rows of one document share the prompt for as long as their variants agree, so it is not stored once for each.
All states end at the same column, shorter ones begin later. Sliding-window layers keep all tokens; the model's own mask
hides them.

    column   0   1   2   3   4   5   6   7
    slot 0   .   .   a1  a2  a3  a4  _   _      start = 1 (the earliest begin), stop = 6 (the newest token is in 5),
    slot 1   .   b1  b2  b3  b4  b5  _   _      columns = 8; "." is hidden by the mask, "_" is spare
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from lm_eval_lora_drop.engine.states.tree import Tree
from lm_eval_lora_drop.engine.states.upload import packed

SPARE_COLUMNS = 32
SPARE_STATES = 0.5
"""Share of a layer's states that it has room for beyond them when it grows: groups part one after the other."""
SHRINK = 3
"""A buffer that holds this many times the states it needs is made smaller."""


def columns_for(tokens: int) -> int:
    """How many columns buffers have where the longest row has `tokens` tokens."""
    return tokens + max(SPARE_COLUMNS, tokens // 4)


def slots_for(states: int) -> int:
    """How many slots a buffer has that grows to hold `states` states."""
    return states + int(SPARE_STATES * states)


@dataclass
class Columns:
    """Which columns of all layers' buffers are in use (`start` to `stop`), and how many there are."""

    start: int = 0
    stop: int = 0
    total: int = 0

    @property
    def used(self) -> slice:
        """Those in use."""
        return slice(self.start, self.stop)


class RowLayer(DynamicLayer):
    """Keys and values of one layer: two buffers (slots, heads, columns, head size). Slot s of the tree lies at s.

    It holds no reference to its `RowCache`: a ring of references would keep gigabytes until the garbage collector runs.
    """

    def __init__(self, tree: Tree, index: int, columns: Columns) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tree = tree
        self.index = index
        self.columns = columns
        self.buffers: list[torch.Tensor] = []

    @property
    def states(self) -> int:
        """How many slots are in use."""
        return int(self.tree.states[self.index])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new tokens, each (states, heads, new, head size); returns views of all so far, (states, heads,
        stop - start + new, head size)."""
        stop = self.columns.stop + key_states.shape[2]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[: self.states, :, self.columns.stop : stop] = new
        keys, values = (buffer[: self.states, :, self.columns.start : stop] for buffer in self.buffers)
        return keys, values

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self.columns.stop - self.columns.start

    def write(self, slots: torch.Tensor, states: Sequence[torch.Tensor]) -> None:
        """Prompts (keys, values), each (slots, heads, length, head size), so that they end at the newest column."""
        self.fit(states)
        begin = self.columns.stop - states[0].shape[2]
        for buffer, new in zip(self.buffers, states, strict=True):
            # What lies before is hidden by the mask, but hidden values are multiplied by zero, which leaves NaN as it
            # is. So no column in use is ever left undefined.
            buffer[slots, :, self.columns.start : begin] = 0
            buffer[slots, :, begin : self.columns.stop] = new

    def clear(self, columns: slice) -> None:
        """Zeros in these columns of every state."""
        for buffer in self.buffers:
            buffer[: self.states, :, columns] = 0

    def move(self, slots: torch.Tensor, origins: torch.Tensor) -> None:
        """What lay in `origins` now lies in `slots`, all at once (the right side is copied before it is written)."""
        for buffer in self.buffers:
            buffer[slots, :, self.columns.used] = buffer[origins, :, self.columns.used]

    def fit(self, like: Sequence[torch.Tensor]) -> None:
        """Room for the tree's states, and not much more; the content of all slots stays where both have them.

        `like` are keys and values whose heads, head size, dtype and device the buffers get.
        """
        there = len(self.buffers[0]) if self.buffers else 0
        if self.states <= there <= SHRINK * max(1, self.states):
            return
        self.rebuild(like, slots_for(self.states), self.columns.used, self.columns.used)

    def rebuild(self, like: Sequence[torch.Tensor], slots: int, source: slice, target: slice) -> None:
        """New buffers with `slots` slots and `columns.total` columns; the old content of `source` lies at `target`."""
        old, self.buffers = self.buffers, []
        for number, states in enumerate(like):
            buffer = states.new_empty((slots, states.shape[1], self.columns.total, states.shape[3]))
            if old:
                both = min(slots, len(old[number]))
                buffer[:both, :, target] = old[number][:both, :, source]
                # The old keys are gone before the new values are made.
                old[number] = buffer
            self.buffers.append(buffer)


class RowCache(Cache):
    """One `RowLayer` for each decoder layer, over the columns that all have in common."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.columns = Columns()
        self.rows = [RowLayer(tree, index, self.columns) for index in range(tree.num_layers)]
        super().__init__(layers=list(self.rows))

    def make_room(self, prompt: int) -> int:
        """Make `stop` at least `prompt`, with a column behind it; returns by how many the columns in use moved."""
        columns = self.columns
        if prompt <= columns.stop < columns.total:
            return 0
        length = columns.stop - columns.start
        # To the left edge, where nothing is in use before `start`; further right only to make a long prompt fit.
        start = max(0, prompt - length)
        source, target = columns.used, slice(start, start + length)
        columns.total = start + columns_for(length)
        for layer in self.rows:
            if layer.buffers:
                layer.rebuild(layer.buffers, len(layer.buffers[0]), source, target)
        moved = start - columns.start
        columns.start, columns.stop = target.start, target.stop
        return moved

    def receive(self, longest: int, *, first: bool) -> int:
        """Make room for prompts of up to `longest` tokens, which end where all states end; the `first` find no others.

        Returns by how many the columns in use moved. Columns that come into use are zero (see `RowLayer.write`).
        """
        columns = self.columns
        if first:
            columns.start = columns.stop = 0
        moved = self.make_room(longest)
        if first:
            columns.stop = longest
        start = columns.stop - longest
        if start < columns.start:
            for layer in self.rows:
                layer.clear(slice(start, columns.start))
            columns.start = start
        return moved

    def write(self, prompts: DynamicCache, tree: Tree, there: Sequence[int], here: Sequence[int]) -> None:
        """Copy the states of rows `there`, of another tree with its cache, to those of rows `here` of this one."""
        # Rows that share a state write it once: the first of each.
        firsts = [np.unique(column, return_index=True) for column in self.tree.slot[list(here)].T]
        origins = [tree.slot[list(there), index][first] for index, (_, first) in enumerate(firsts)]
        places = packed([*(slots for slots, _ in firsts), *origins])
        for index, layer in enumerate(self.rows):
            source: Any = prompts.layers[index]
            slots, origin = (place.on(source.keys.device) for place in places[index :: len(origins)])
            layer.write(slots, (source.keys[origin], source.values[origin]))

    def settle(self) -> None:
        """Settle the tree, and move keys and values to where it says."""
        moves = self.tree.settle()
        places = packed([array for slots_and_origins in moves for array in slots_and_origins])
        for layer, slots, origins in zip(self.rows, places[::2], places[1::2], strict=True):
            if not layer.buffers:
                continue
            device = layer.buffers[0].device
            if len(layer.buffers[0]) < layer.states:
                layer.fit(layer.buffers)
            if slots.numbers.size:
                layer.move(slots.on(device), origins.on(device))
            # Smaller only now: what was moved may have lain in the last slots.
            layer.fit(layer.buffers)
