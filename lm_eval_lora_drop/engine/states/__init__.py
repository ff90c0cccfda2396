"""Which states the rows of a batch share, where they lie, and how one model computes them.

Read in this order: `settings` (variants as numbers, and the trie they form), `tree` (the rows of a batch and the slots
of their states), `cache` (keys and values in these slots), `arguments` (what a model hands to its layers), `branching`
(states through the layers of one model), `prefix` (what all prompts begin with).
"""
