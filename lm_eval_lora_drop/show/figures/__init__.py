"""Every picture, drawn from what is recorded."""
