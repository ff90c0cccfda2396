"""The benchmarks' metrics as plain functions: strings in, numbers out. A task's `utils.py` picks what it needs."""
