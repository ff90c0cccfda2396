"""Aggregation, resampling and tests, on plain numbers."""
