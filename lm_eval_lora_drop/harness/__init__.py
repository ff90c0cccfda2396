"""Everything that knows lm-eval beyond its public model and task classes."""
