"""Runs requests under many boundaries at once.

Read in this order: `plain` (one boundary after another), `tree` (which states the rows of a batch share, and where they
lie), `branching` (those states through the layers of one model), `cache` (their keys and values), `requests` (the
harness's rules for prompts and stops), `decode` (greedy generation over rows), `generation` and `loglikelihood` (the
requests of a sweep), `shared` (the runner that puts them together), `single` (the evaluated split).
"""
