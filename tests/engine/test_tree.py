"""The books of the shared pass, against a simulation that stores in every slot what has been computed for it."""

import numpy as np
import pytest

from lm_eval_lora_drop.engine.tree import NONE, Tree

LAYERS = 5


class Simulation:
    """Each slot of each layer holds (document, boundary if LoRA is off by then, tokens so far)."""

    def __init__(self, capacity):
        self.tree = Tree(LAYERS, capacity)
        self.groups = []
        self.slots = [{} for _ in range(LAYERS)]
        self.documents = 0

    def expected(self, layer, boundary, document, said):
        return (document, None if boundary > layer else boundary, tuple(said))

    def add(self, boundaries):
        rows = self.tree.add(boundaries)
        self.settle()
        for row, boundary in zip(rows, boundaries, strict=True):
            for layer in range(LAYERS):
                slot = self.tree.slot[row, layer]
                if slot != NONE:
                    assert slot not in self.slots[layer]
                    self.slots[layer][slot] = self.expected(layer, boundary, self.documents, ())
        self.groups.append((self.documents, list(zip(rows, boundaries, strict=True)), []))
        self.documents += 1

    def say(self, choose, leaves):
        """Every row says a token; groups part by it; some leave."""
        staying = []
        for document, members, said in self.groups:
            parts = {}
            for row, boundary in members:
                parts.setdefault(choose(), []).append((row, boundary))
            for index, (token, part) in enumerate(parts.items()):
                if index:
                    self.tree.part([row for row, _ in part])
                staying.append((document, part, [*said, token]))
        self.groups = []
        for document, part, said in staying:
            if leaves():
                self.tree.remove([row for row, _ in part])
            else:
                self.groups.append((document, part, said))
        self.settle()

    def settle(self):
        for layer, (slots, origins) in enumerate(self.tree.moves()):
            moved = {slot: self.slots[layer][origin] for slot, origin in zip(slots, origins, strict=True)}
            self.slots[layer].update(moved)
            low, high = -self.tree.with_lora[layer], self.tree.without_lora[layer]
            self.slots[layer] = {slot: held for slot, held in self.slots[layer].items() if low <= slot < high}

    def forward(self):
        """Follow the route; what was computed for the tokens said before last is in the slots, the last one joins."""
        order = [row for _, members, _ in self.groups for row, _ in members]
        route = self.tree.route(order, "cpu")
        of_row = {row: (document, k, said) for document, members, said in self.groups for row, k in members}
        inputs = [(of_row[row][0], tuple(of_row[row][2])) for row in route.inputs]
        hidden = inputs
        for layer in range(LAYERS):
            source, context = route.sources[layer], route.contexts[layer]
            hidden = hidden if source is None else [hidden[i] for i in source]
            given = inputs if context is None else [inputs[i] for i in context]
            slots = range(-self.tree.with_lora[layer], self.tree.without_lora[layer])
            assert len(hidden) == len(slots) == len(given)
            assert sum(slot < 0 for slot in slots) == route.with_lora[layer]
            computed = []
            for slot, entering, (document, said) in zip(slots, hidden, given, strict=True):
                held = self.slots[layer][slot]
                assert held[0] == document == entering[0]
                assert held[2] == said[: len(held[2])]
                boundary = held[1]
                assert (boundary is None) == (slot < 0)
                # A state with LoRA comes from one with LoRA; one without from its own, or from the trunk at its layer.
                came = entering[2] if len(entering) > 2 else None
                assert came in (boundary, None)
                assert came is not None or boundary in (None, layer)
                self.slots[layer][slot] = (document, boundary, said)
                computed.append((document, said, boundary))
            hidden = computed
        for row, place in zip(order, route.outputs.tolist(), strict=True):
            document, boundary, said = of_row[row]
            assert hidden[place] == (document, tuple(said), None if boundary == LAYERS else boundary)


@pytest.mark.parametrize("seed", range(20))
def test_every_row_finds_its_states(seed):
    rng = np.random.default_rng(seed)
    simulation = Simulation(capacity=40)
    for _ in range(30):
        while simulation.tree.free >= 6 and rng.random() < 0.6:
            count = rng.integers(1, LAYERS + 2)
            simulation.add(sorted(rng.choice(LAYERS + 1, count, replace=False).tolist(), reverse=True))
        if simulation.groups:
            simulation.say(lambda: int(rng.random() < 0.15), lambda: rng.random() < 0.2)
        if simulation.groups:
            simulation.forward()


def test_rows_that_say_the_same_share_the_states_below_their_boundaries():
    tree = Tree(LAYERS, 6)
    rows = tree.add([5, 4, 3, 2, 1, 0])
    assert (tree.with_lora + tree.without_lora).tolist() == [2, 3, 4, 5, 6]
    tree.part(rows[3:])
    assert (tree.with_lora + tree.without_lora).tolist() == [3, 4, 4, 5, 6]
    tree.remove(rows[:3])
    assert (tree.with_lora + tree.without_lora).tolist() == [2, 3, 3, 3, 3]
    assert tree.free == 3
