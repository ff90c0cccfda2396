"""The books of the shared pass, against a simulation that stores in every slot what has been computed for it."""

import numpy as np
import pytest

from lm_eval_lora_drop.engine.states.settings import Settings
from lm_eval_lora_drop.engine.states.tree import Tree
from lm_eval_lora_drop.variant import Variant

LAYERS = 5


def below(boundary):
    return Variant.below(boundary, LAYERS)


def random_variant(rng):
    kinds = ["", "x0.5", ".mlp", "r2"]
    text = "+".join(f"{i}{kinds[rng.integers(len(kinds))]}" for i in range(LAYERS) if rng.random() < 0.8)
    return Variant.parse(text or "none", LAYERS)


class Simulation:
    """Each slot of each layer holds (document, what is kept up to this layer, tokens so far)."""

    def __init__(self, capacity):
        self.tree = Tree(Settings(LAYERS), capacity)
        self.groups = []
        self.slots = [{} for _ in range(LAYERS)]
        self.documents = 0

    def add(self, variants):
        rows = self.tree.add(variants)
        self.settle()
        for layer in range(LAYERS):
            # What lay there has moved elsewhere, or a state of another row would be lost now.
            for slot in set(self.tree.slot[rows, layer].tolist()):
                self.slots[layer].pop(slot, None)
            for row, variant in zip(rows, variants, strict=True):
                state = (self.documents, variant.layers[: layer + 1], ())
                slot = int(self.tree.slot[row, layer])
                # Rows share a slot exactly where they are to share a state.
                assert self.slots[layer].setdefault(slot, state) == state
        self.groups.append((self.documents, list(zip(rows, variants, strict=True)), []))
        self.documents += 1

    def say(self, choose, leaves):
        """Every row says a token; groups part by it; some leave."""
        staying = []
        for document, members, said in self.groups:
            parts = {}
            for row, variant in members:
                parts.setdefault(choose(), []).append((row, variant))
            parts = list(parts.items())
            for index, (_, part) in enumerate(parts[1:], 1):
                rest = [row for _, other in (parts[0], *parts[index + 1 :]) for row, _ in other]
                self.tree.part([row for row, _ in part], rest)
            staying += [(document, part, [*said, token]) for token, part in parts]
        self.groups = []
        for document, part, said in staying:
            if leaves():
                self.tree.remove([row for row, _ in part])
            else:
                self.groups.append((document, part, said))
        self.settle()

    def settle(self):
        for layer, (slots, origins) in enumerate(self.tree.settle()):
            moved = {int(slot): self.slots[layer][int(origin)] for slot, origin in zip(slots, origins, strict=True)}
            self.slots[layer].update(moved)
            self.slots[layer] = {s: held for s, held in self.slots[layer].items() if s < self.tree.states[layer]}
        self.check_number_of_states()

    def check_number_of_states(self):
        """As many states as there are different (group, what is kept up to the layer)."""
        in_tree = len(self.tree.slot) - self.tree.free
        if in_tree == sum(len(members) for _, members, _ in self.groups):
            for layer in range(LAYERS):
                nodes = {
                    (i, v.layers[: layer + 1]) for i, (_, members, _) in enumerate(self.groups) for _, v in members
                }
                assert self.tree.states[layer] == len(nodes)

    def forward(self):
        """Follow the route; what was computed for the tokens said before last is in the slots, the last one joins."""
        order = [row for _, members, _ in self.groups for row, _ in members]
        route = self.tree.route(order)
        of_row = {row: (document, variant, said) for document, members, said in self.groups for row, variant in members}
        inputs = [(of_row[row][0], tuple(of_row[row][2])) for row in route.inputs]
        hidden = [(document, (), said) for document, said in inputs]
        for layer in range(LAYERS):
            source, context = route.sources[layer], route.contexts[layer]
            hidden = hidden if source is None else [hidden[i] for i in source.numbers]
            given = inputs if context is None else [inputs[i] for i in context.numbers]
            assert len(hidden) == len(given) == route.states[layer]
            settings = [None] * len(hidden)
            for segment in route.segments[layer]:
                for place in range(segment.start, segment.stop):
                    assert settings[place] is None
                    settings[place] = self.tree.settings.meanings[segment.setting][1]
            computed = []
            for slot, (entering, (document, said)) in enumerate(zip(hidden, given, strict=True)):
                held = self.slots[layer][slot]
                state = (document, (*entering[1], settings[slot]), said)
                assert entering[0] == document
                assert entering[2] == said
                # What lies in the slot is of this document, under the same layers, for tokens that it goes on from.
                assert held[:2] == state[:2]
                assert held[2] == said[: len(held[2])]
                self.slots[layer][slot] = state
                computed.append(state)
            hidden = computed
        for row, place in zip(order, route.outputs.numbers.tolist(), strict=True):
            document, variant, said = of_row[row]
            assert hidden[place] == (document, variant.layers, tuple(said))


@pytest.mark.parametrize("boundaries", [True, False], ids=["boundaries", "any variants"])
@pytest.mark.parametrize("seed", range(15))
def test_every_row_finds_its_states(seed, boundaries):
    rng = np.random.default_rng(seed)
    simulation = Simulation(capacity=40)
    for _ in range(30):
        while simulation.tree.free >= 6 and rng.random() < 0.6:
            count = rng.integers(1, LAYERS + 2)
            if boundaries:
                variants = [below(k) for k in rng.choice(LAYERS + 1, count, replace=False)]
            else:
                variants = list(dict.fromkeys(random_variant(rng) for _ in range(count)))
            simulation.add(variants)
        if simulation.groups:
            simulation.say(lambda: int(rng.integers(3) if rng.random() < 0.3 else 0), lambda: rng.random() < 0.2)
        if simulation.groups:
            simulation.forward()


def test_rows_that_say_the_same_share_the_states_below_their_boundaries():
    tree = Tree(Settings(LAYERS), 6)
    rows = tree.add([below(k) for k in (5, 4, 3, 2, 1, 0)])
    tree.settle()
    assert tree.states.tolist() == [2, 3, 4, 5, 6]
    tree.part(rows[3:], rows[:3])
    tree.settle()
    assert tree.states.tolist() == [3, 4, 4, 5, 6]
    tree.remove(rows[:3])
    tree.settle()
    assert tree.states.tolist() == [2, 3, 3, 3, 3]
    assert tree.free == 3


def test_sharing_is_by_common_beginning():
    settings = Settings(3)
    numbers = settings.numbers([Variant.parse(text, 3) for text in ("0-2", "0-1", "0+2", "none", "2", "0-1+2x0.5")])
    # By hand: 0-2 and 0-1 part in layer 2; 0+2 leaves them in layer 1; none and 2 agree on 0 and 1; equal settings in
    # layer 2 do not bring back together what has parted.
    assert settings.sharing(numbers).tolist() == [[0, 0, 0], [0, 0, 1], [0, 2, 2], [3, 3, 3], [3, 3, 4], [0, 0, 5]]
