"""Tiny models, servers and recorded runs for tests, benchmarks and campaigns."""
