"""Which boundaries meet which documents next, how they score, which one is chosen. Knows no torch."""
