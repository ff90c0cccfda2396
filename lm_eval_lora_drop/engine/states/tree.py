"""Which states the rows of a batch have in each layer, and where these lie.

A row is one document under one variant. Rows of one document that have generated the same so far form a *group*; within
it two rows share a state for as long as their variants agree (`settings`). When a group generates different tokens it
parts: states that both sides need are copied, and each side goes on by itself.

The states of a layer lie in slots 0, 1, ... without holes, ordered by setting: what LoRA does is then one contiguous
slice of the layer's batch for each setting. While rows come, part and leave the order is broken; `settle` restores it
with as few moves as can be. Tables only: the cache moves what lies in the slots (keys and values).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lm_eval_lora_drop.engine.states.settings import Indices, Settings
from lm_eval_lora_drop.engine.states.upload import DeviceIndices, packed
from lm_eval_lora_drop.variant import Variant

NOBODY = -1
"""In `_owner`: a free slot."""
NEW = -1
"""In `_origin`: a state whose content is yet to be written, by a prefill."""


@dataclass(frozen=True)
class Segment:
    """The states `start` to `stop` of a layer's batch, all of which have this setting."""

    setting: int
    start: int
    stop: int


@dataclass(frozen=True)
class Route:
    """How a forward over a tree's rows runs through the layers.

    The model is called with one input per state of layer 0, those of the rows `inputs`. Layer i has `states[i]` states
    in these `segments[i]`; they come from the outputs `sources[i]` of the layer before, with what the model computed
    for the inputs `contexts[i]` (masks, positions); None stands for all in their order. The output has one state for
    each row: that of the k-th of `rows` is at `outputs[k]`.
    """

    inputs: Indices
    states: tuple[int, ...]
    sources: tuple[DeviceIndices | None, ...]
    contexts: tuple[DeviceIndices | None, ...]
    segments: tuple[tuple[Segment, ...], ...]
    outputs: DeviceIndices


class Tree:
    """The rows of a batch, at most `capacity` at a time."""

    def __init__(self, settings: Settings, capacity: int) -> None:
        layers = settings.num_layers
        self.settings = settings
        self.num_layers = layers
        self.slot = np.zeros((capacity, layers), np.int64)
        """(capacity, L): where a row's state lies in each layer; rows that share a state have the same slot there."""
        self.variant = np.zeros(capacity, np.int64)
        """(capacity,): the number of the variant of each row that is in."""
        self.states = np.zeros(layers, np.int64)
        """(L,): how many states each layer has, as of the last `settle`."""
        self._free = list(range(capacity))[::-1]
        # (L, 2 capacity), by slot: a row whose state it is, and the slot in which its content lies until it is moved.
        # Between two settlings at most as many states enter as there are rows, so slots stay below 2 capacity.
        self._owner = np.full((layers, 2 * capacity), NOBODY)
        self._origin = np.full((layers, 2 * capacity), NEW)
        # (L,): the first slot that has not been given out since the last `settle`.
        self._end = np.zeros(layers, np.int64)
        self._settled = True

    @property
    def free(self) -> int:
        """How many rows may still come in."""
        return len(self._free)

    def add(self, variants: Sequence[Variant]) -> list[int]:
        """A new document under these variants (no repeats): its rows, one group. Their content is yet to be written."""
        rows = [self._free.pop() for _ in variants]
        self.variant[rows] = self.settings.numbers(variants)
        first = self._first(rows)
        self._enter(rows, first, self._own(first), origin=None)
        return rows

    def part(self, leaving: Sequence[int], staying: Sequence[int]) -> None:
        """A settled group parts: the rows `leaving` get copies of the states that they share with those `staying`."""
        first = self._first(leaving)
        own = self._own(first)
        # (leaving, staying, L): rows with a common prefix have the same slots up to where it ends.
        shared = (self.slot[list(leaving)][:, None] == self.slot[list(staying)][None]).any(axis=1)
        layers = np.arange(self.num_layers)
        origin = self._origin[layers, self.slot[list(leaving)]]
        self._enter(leaving, first, own & shared, origin=origin, keeping=~shared)
        # A state that was owned by a row of the other side gets an owner of its own side: rows of one side have said
        # the same, and the owner's token is what the state reads.
        self._claim(leaving, own)
        self._claim(staying, self._own(self._first(staying)))

    def remove(self, rows: Sequence[int]) -> None:
        """A whole group leaves."""
        layers = np.arange(self.num_layers)
        self._owner[layers, self.slot[list(rows)]] = NOBODY
        self._free += rows
        self._settled = False

    def settle(self) -> list[tuple[Indices, Indices]]:
        """Give each layer's states the slots 0, 1, ... in the order of their settings.

        Returns:
            for each layer the slots that get another state than they had, and the slots in which these lie; to be
            carried out all at once. A state that is yet to be written is not among them.
        """
        if self._settled:
            nothing = np.zeros(0, np.int64)
            return [(nothing, nothing)] * self.num_layers
        self._settled = True
        rows = np.setdiff1d(np.arange(len(self.slot)), self._free)
        return [self._settle(layer, rows) for layer in range(self.num_layers)]

    def route(self, rows: Sequence[int]) -> Route:
        """The way through the layers for all rows in the tree; `rows` gives the order of the outputs."""
        assert self._settled
        layers = range(self.num_layers)
        owners = [self.owners(layer) for layer in layers]
        # A state's owner shares the state before it too, and that of layer 0: so its slots there are the way.
        ways = [
            _unless_all(self.slot[owners[layer], before], len(owners[before]))
            for layer, before in [*((layer, max(0, layer - 1)) for layer in layers), *((layer, 0) for layer in layers)]
        ]
        *sent, outputs = packed([*(way for way in ways if way is not None), self.slot[list(rows), self.num_layers - 1]])
        places = iter(sent)
        found = [None if way is None else next(places) for way in ways]
        return Route(
            owners[0],
            tuple(map(len, owners)),
            tuple(found[: self.num_layers]),
            tuple(found[self.num_layers :]),
            tuple(self._segments(layer, owners[layer]) for layer in layers),
            outputs,
        )

    def owners(self, layer: int) -> Indices:
        """(states of the layer,): for each slot a row whose state it is."""
        return self._owner[layer, : self.states[layer]].copy()

    def _first(self, rows: Sequence[int]) -> Indices:
        """(rows, L): the place in `rows` of the first that shares the row's state."""
        return self.settings.sharing(self.variant[list(rows)].tolist())

    @staticmethod
    def _own(first: Indices) -> np.ndarray:
        """(rows, L) bool: whether the row is the first to have its state."""
        own: np.ndarray = first == np.arange(len(first))[:, None]
        return own

    def _enter(
        self,
        rows: Sequence[int],
        first: Indices,
        entering: np.ndarray,
        origin: Indices | None,
        keeping: np.ndarray | None = None,
    ) -> None:
        """Slots for the states `entering` (rows, L), behind all others; who shares them gets the same.

        `origin` (rows, L) says where their content lies (None: nowhere yet), `keeping` (rows, L) which states stay.
        """
        # In each layer the entering states are numbered from `_end` on: a running count down the rows.
        slots = self._end + entering.cumsum(axis=0) - 1
        row, layer = np.nonzero(entering)
        new = slots[row, layer]
        self._owner[layer, new] = np.array(rows)[row]
        self._origin[layer, new] = NEW if origin is None else origin[row, layer]
        self._end += entering.sum(axis=0)
        slots = np.take_along_axis(slots, first, axis=0)
        self.slot[list(rows)] = slots if keeping is None else np.where(keeping, self.slot[list(rows)], slots)
        self._settled = False

    def _claim(self, rows: Sequence[int], own: np.ndarray) -> None:
        row, layer = np.nonzero(own)
        mine = np.array(rows)[row]
        self._owner[layer, self.slot[mine, layer]] = mine

    def _settle(self, layer: int, rows: Indices) -> tuple[Indices, Indices]:
        old = np.flatnonzero(self._owner[layer, : self._end[layer]] != NOBODY)
        owner, origin = self._owner[layer, old], self._origin[layer, old]
        setting = self.settings.at(self.variant[owner], layer)
        # Each setting's states belong into slots start to stop: as many as it has, one setting after the other.
        _, kind, counts = np.unique(setting, return_inverse=True, return_counts=True)
        stop = counts.cumsum()
        start = stop - counts
        stays = (start[kind] <= old) & (old < stop[kind])
        # What is in its range stays. The others take the holes: as many holes in each range as states that want in,
        # so both in ascending order of setting fit.
        movers = np.flatnonzero(~stays)
        movers = movers[np.argsort(kind[movers], kind="stable")]
        slot = old.copy()
        slot[movers] = np.setdiff1d(np.arange(len(old)), old[stays])
        size = len(old)
        self._owner[layer, : self._end[layer]] = NOBODY
        self._owner[layer, slot] = owner
        self._origin[layer, :size] = np.arange(size)
        self.states[layer] = self._end[layer] = size
        new_slot = np.zeros(2 * len(self.slot), np.int64)
        new_slot[old] = slot
        self.slot[rows, layer] = new_slot[self.slot[rows, layer]]
        moved = (origin != slot) & (origin != NEW)
        return slot[moved], origin[moved]

    def _segments(self, layer: int, owners: Indices) -> tuple[Segment, ...]:
        setting = self.settings.at(self.variant[owners], layer)
        assert (setting[1:] >= setting[:-1]).all()
        kinds, start, counts = np.unique(setting, return_index=True, return_counts=True)
        return tuple(
            Segment(int(one), int(begin), int(begin + count))
            for one, begin, count in zip(kinds, start, counts, strict=True)
        )


def _unless_all(places: Indices, total: int) -> Indices | None:
    return None if len(places) == total and np.array_equal(places, np.arange(total)) else places
