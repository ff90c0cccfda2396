"""lm-eval, as far as this package knows more of it than its public model and task classes."""
