"""`RowCache` against plain lists: what a state is given back is what was written for it, wherever it has been moved."""

import numpy as np
import pytest
import torch
from transformers.cache_utils import DynamicCache

from lm_eval_lora_drop.engine.states.cache import SHRINK, RowCache
from lm_eval_lora_drop.engine.states.settings import Settings
from lm_eval_lora_drop.engine.states.tree import Tree
from lm_eval_lora_drop.variant import Variant

LAYERS, HEADS, SIZE = 3, 2, 4


def variants(*texts):
    return [Variant.parse(text, LAYERS) for text in texts]


class Rows:
    """A cache, and beside it for each row and layer the values written for it, a list of vectors."""

    def __init__(self, capacity, seed):
        self.rng = np.random.default_rng(seed)
        self.settings = Settings(LAYERS)
        self.tree = Tree(self.settings, capacity)
        self.cache = RowCache(self.tree)
        self.groups = []
        self.expected = {}
        self.begin = np.zeros(capacity, np.int64)

    def admit(self, kept, length):
        cache = self.cache
        self.begin += cache.receive(length, first=not self.groups)
        rows = self.tree.add(kept)
        cache.settle()
        prefill = Tree(self.settings, len(kept))
        there = prefill.add(kept)
        prefill.settle()
        prompts = DynamicCache()
        for layer in range(LAYERS):
            states = int(prefill.states[layer])
            keys = torch.from_numpy(self.rng.random((states, HEADS, length, SIZE), np.float32))
            prompts.update(keys, -keys, layer)
            for row, place in zip(rows, prefill.slot[there, layer], strict=True):
                self.expected[row, layer] = [keys[place, :, column] for column in range(length)]
        cache.write(prompts, prefill, there, rows)
        self.begin[rows] = cache.columns.stop - length
        self.groups.append(rows)

    def step(self):
        cache = self.cache
        self.begin += cache.make_room(0)
        cache.columns.start = int(self.begin[[rows[0] for rows in self.groups]].min())
        for layer in range(LAYERS):
            new = torch.from_numpy(self.rng.random((int(self.tree.states[layer]), HEADS, 1, SIZE), np.float32))
            keys, values = cache.update(new, -new, layer)
            for row in (row for rows in self.groups for row in rows):
                slot = self.tree.slot[row, layer]
                mine = self.expected[row, layer] = [*self.expected[row, layer], new[slot, :, 0]]
                seen = keys[slot, :, self.begin[row] - cache.columns.start :]
                assert torch.equal(seen, torch.stack(mine, 1))
                assert torch.equal(values[slot, :, self.begin[row] - cache.columns.start :], -seen)
                assert not keys[slot].isnan().any()
        cache.columns.stop += 1


@pytest.fixture(autouse=True)
def undefined_memory_is_nan():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("seed", range(4))
def test_every_state_keeps_its_keys_and_values(seed):
    rows = Rows(24, seed)
    rng = rows.rng
    families = [("0-2", "0-1", "0", "none"), ("0-2x0.5", "1-2", "0+2"), ("none",), ("0-2.mlp", "0-1.mlp")]
    for _ in range(60):
        if rows.tree.free >= 4 and rng.random() < 0.4:
            rows.admit(variants(*families[rng.integers(len(families))]), int(rng.integers(1, 12)))
        for group in list(rows.groups):
            if len(group) > 1 and rng.random() < 0.2:
                leaving, staying = group[::2], group[1::2]
                rows.tree.part(leaving, staying)
                rows.groups.remove(group)
                rows.groups += [leaving, staying]
            elif rng.random() < 0.08:
                rows.groups.remove(group)
                rows.tree.remove(group)
        rows.cache.settle()
        if rows.groups:
            rows.step()


def test_buffers_shrink_as_rows_leave():
    rows = Rows(40, 0)
    for _ in range(10):
        rows.admit(variants("0-2", "0-1", "0", "none"), 5)
    many = [len(layer.buffers[0]) for layer in rows.cache.rows]
    for group in rows.groups[1:]:
        rows.tree.remove(group)
    rows.groups = rows.groups[:1]
    rows.cache.settle()
    assert all(
        len(layer.buffers[0]) <= SHRINK * layer.states < size for layer, size in zip(rows.cache.rows, many, strict=True)
    )
    rows.step()
