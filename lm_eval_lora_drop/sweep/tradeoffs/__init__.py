"""Choices over several tasks or metrics."""
