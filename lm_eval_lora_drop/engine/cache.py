"""A key/value cache whose rows branch, grow in place and leave.

Unlike transformers' `DynamicCache`, which copies everything at every step to append one token, each layer writes into
a buffer with room for the tokens to come. Sliding-window layers keep all tokens; the model's own mask hides them.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer


class RowLayer(DynamicLayer):
    """Keys and values of one layer, (rows, heads, tokens, head size), with room for `room` tokens."""

    def __init__(self, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.room = room
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append tokens; returns all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            # The prompt is kept as it is: its rows are about to be selected into a buffer.
            self.keys, self.values = key_states, value_states
            return self.keys, self.values
        if self._buffers is None:
            self.select(None)
        assert self._buffers is not None
        assert self.keys is not None
        start = self.keys.shape[2]
        stop = start + key_states.shape[2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:stop] = states
        self.keys, self.values = (buffer[:, :, :stop] for buffer in self._buffers)
        return self.keys, self.values

    def select(self, rows: torch.Tensor | None) -> None:
        """Keep these rows (indices, repeats allowed; None keeps all), in this order, in a buffer with room to grow."""
        filled = []
        for states in (self.keys, self.values):
            assert states is not None
            count = states.shape[0] if rows is None else len(rows)
            buffer = states.new_empty((count, states.shape[1], self.room, states.shape[3]))
            buffer[:, :, : states.shape[2]] = states if rows is None else states[rows]
            filled.append(buffer)
        tokens = self.keys.shape[2]  # type: ignore[union-attr]
        self._buffers = (filled[0], filled[1])
        self.keys, self.values = (buffer[:, :, :tokens] for buffer in filled)


class RowCache(Cache):
    """One `RowLayer` for each decoder layer."""

    def __init__(self, num_layers: int, room: int) -> None:
        self.rows = [RowLayer(room) for _ in range(num_layers)]
        super().__init__(layers=list(self.rows))

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows in every layer."""
        for layer in self.rows:
            layer.select(rows)
