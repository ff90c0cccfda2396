"""Above one sweep: greedy rounds of sweeps, other tasks scored beside the optimised one, and what is traded."""
