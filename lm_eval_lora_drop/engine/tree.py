"""Which states the rows of a batch have in each layer, and where these lie.

A row is one document under one boundary K. What layer i computes for it depends on the tokens so far and on which
layers up to i have LoRA. So rows of one document that have said the same share one state in every layer below their
boundaries: they form a *group*, and its states with LoRA belong to the *leader*, the row of the largest boundary. At
layer K the row of boundary K branches off and has states of its own from there on. A group whose rows say different
tokens parts; the part without the old leader gets a leader of its own, with copies of the shared states.

States with LoRA lie in the slots -1, -2, ... of a layer and those without in 0, 1, ..., so that a layer's batch, read
from the lowest slot to the highest, has LoRA on in a leading slice. A state that leaves is replaced by the outermost
one of its side. Tables only: what lies in the slots (keys and values) is moved by whoever holds it, see `Tree.moves`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Indices = npt.NDArray[np.int64]
NONE = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Route:
    """How a forward over a tree's rows runs through the layers.

    The model is called with one input per state of layer 0, those of the rows `inputs`. Layer i works on the outputs
    `sources[i]` of the layer before it, with what the model computed for the inputs `contexts[i]` (masks, positions);
    None stands for all of them in their order. Its first `with_lora[i]` states have LoRA on. The output has one state
    for each row: that of the k-th of `rows` is at `outputs[k]`.
    """

    inputs: Indices
    sources: tuple[torch.Tensor | None, ...]
    contexts: tuple[torch.Tensor | None, ...]
    with_lora: tuple[int, ...]
    outputs: torch.Tensor


class Tree:
    """The rows of a batch, at most `capacity` at a time."""

    def __init__(self, num_layers: int, capacity: int) -> None:
        self.num_layers = num_layers
        self.slot = np.full((capacity, num_layers), NONE)
        """The slot of a row's own state in each layer, NONE where it has none (shared with its leader, or not in)."""
        self.with_lora = np.zeros(num_layers, np.int64)
        self.without_lora = np.zeros(num_layers, np.int64)
        self.boundary = np.zeros(capacity, np.int64)
        """The boundary of each row that is in."""
        self._leader = np.zeros(capacity, np.int64)
        self._free = list(range(capacity))[::-1]
        # Column `capacity + slot`: the row whose state it is, and the slot in which its content lies until moved.
        self._middle = capacity
        self._owner = np.zeros((num_layers, 2 * capacity), np.int64)
        self._origin = np.zeros((num_layers, 2 * capacity), np.int64)

    @property
    def free(self) -> int:
        """How many rows may still come in."""
        return len(self._free)

    def add(self, boundaries: Sequence[int]) -> list[int]:
        """A new document under these boundaries (falling, without repeats): its rows, one group."""
        rows = [self._free.pop() for _ in boundaries]
        self._leader[rows] = rows[0]
        for row, boundary in zip(rows, boundaries, strict=True):
            self.boundary[row] = boundary
            self._enter(row, np.arange(boundary, self.num_layers), lora=False)
        self._enter(rows[0], np.arange(boundaries[0]), lora=True)
        return rows

    def part(self, rows: Sequence[int]) -> None:
        """These rows of a group, its leader not among them, in falling order of boundary, go on as their own group."""
        layers = np.arange(self.boundary[rows[0]])
        shared = self.slot[self._leader[rows[0]], layers]
        self._enter(rows[0], layers, lora=True, origin=self._origin[layers, self._middle + shared])
        self._leader[list(rows)] = rows[0]

    def remove(self, rows: Sequence[int]) -> None:
        """A whole group leaves."""
        for row in rows:
            self._leave(row)
            self._free.append(row)

    def moves(self) -> list[tuple[Indices, Indices]]:
        """For each layer the slots whose content now lies in another slot, and which; asked once, taken as done."""
        found = []
        for layer in range(self.num_layers):
            slots = np.arange(-self.with_lora[layer], self.without_lora[layer])
            origin = self._origin[layer, self._middle + slots]
            moved = origin != slots
            found.append((slots[moved], origin[moved]))
            self._origin[layer, self._middle + slots] = slots
        return found

    def route(self, rows: Sequence[int], device: torch.device | str) -> Route:
        """The way through the layers for all rows in the tree; `rows` gives the order of the outputs."""
        owners = [self.owners(layer) for layer in range(self.num_layers)]
        sources: list[torch.Tensor | None] = [None]
        contexts: list[torch.Tensor | None] = [None]
        for layer in range(1, self.num_layers):
            before = len(owners[layer - 1])
            sources.append(_tensor(self.places(owners[layer], layer - 1), before, device))
            contexts.append(_tensor(self.places(owners[layer], 0), len(owners[0]), device))
        outputs = self.places(np.array(rows, np.int64), self.num_layers - 1)
        return Route(
            owners[0].copy(),
            tuple(sources),
            tuple(contexts),
            tuple(self.with_lora.tolist()),
            torch.from_numpy(outputs).to(device),
        )

    def owners(self, layer: int) -> Indices:
        """The rows whose own states make up a layer's batch, in its order."""
        return self._owner[layer, self._middle - self.with_lora[layer] : self._middle + self.without_lora[layer]]

    def places(self, rows: Indices, layer: int) -> Indices:
        """Where in a layer's batch the states of these rows are, their own or shared."""
        holders = np.where(self.boundary[rows] > layer, self._leader[rows], rows)
        return self.slot[holders, layer] + self.with_lora[layer]

    def _enter(self, row: int, layers: Indices, *, lora: bool, origin: Indices | None = None) -> None:
        if lora:
            self.with_lora[layers] += 1
            slots = -self.with_lora[layers]
        else:
            slots = self.without_lora[layers]
            self.without_lora[layers] += 1
        self.slot[row, layers] = slots
        self._owner[layers, self._middle + slots] = row
        self._origin[layers, self._middle + slots] = slots if origin is None else origin

    def _leave(self, row: int) -> None:
        layers = np.flatnonzero(self.slot[row] != NONE)
        slots = self.slot[row, layers]
        lora = slots < 0
        outermost = np.where(lora, -self.with_lora[layers], self.without_lora[layers] - 1)
        mover = self._owner[layers, self._middle + outermost]
        self._owner[layers, self._middle + slots] = mover
        self._origin[layers, self._middle + slots] = self._origin[layers, self._middle + outermost]
        self.slot[mover, layers] = slots
        self.slot[row, layers] = NONE
        self.with_lora[layers] -= lora
        self.without_lora[layers] -= ~lora


def _tensor(places: Indices, total: int, device: torch.device | str) -> torch.Tensor | None:
    if len(places) == total and np.array_equal(places, np.arange(total)):
        return None
    return torch.from_numpy(places).to(device)
