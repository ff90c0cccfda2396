"""LLM judges: a panel that scores outputs, chooses between two systems, and keeps every answer it was given."""
