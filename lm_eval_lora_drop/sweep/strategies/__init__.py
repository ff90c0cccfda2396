"""In which order candidates meet documents: racing, coarse to fine, greedy search."""
