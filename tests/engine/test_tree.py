"""The books of the shared pass, against a simulation that stores in every slot what has been computed for it."""

from lm_eval_lora_drop.engine.states.settings import Settings
from lm_eval_lora_drop.engine.states.tree import Tree
from lm_eval_lora_drop.variant import Variant

LAYERS = 5


def below(boundary):
    return Variant.below(boundary, LAYERS)


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
