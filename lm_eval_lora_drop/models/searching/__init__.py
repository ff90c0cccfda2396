"""The parts of a search: what is measured before anything is chosen."""
