"""Grids of evaluations: planned, run, resumed."""
