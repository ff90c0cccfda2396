"""Runs requests under many boundaries at once.

Read in this order: `plain` (one boundary after another), `cache` (key/value rows that branch, grow and leave),
`branching` (rows of all boundaries through one model), `decode` (greedy generation over rows), `requests` (the
harness's rules for prompts and stops), `loglikelihood`, `shared` (the runner that puts them together), `single` (the
evaluated split).
"""
