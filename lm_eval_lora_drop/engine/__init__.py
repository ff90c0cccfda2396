"""Runs requests under many variants at once.

Read in this order: `plain` (one variant after another), `states` (which states the rows of a batch share, where they
lie, how one model computes them; a room of its own with its own order), `requests` (the harness's rules for prompts and
stops), `decode` (greedy generation over rows), `memory` (how many rows fit), `kernels` (matrix products on a CPU),
`session` (what the kinds of requests share during a sweep), `generation` and `loglikelihood` (the requests of a sweep),
`shared` (the runner that puts them together), `check` (whether it may be trusted with this model), `evaluated` (the
evaluated split).
"""
