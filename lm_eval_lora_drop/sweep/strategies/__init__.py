"""In which order candidates meet documents: racing, greedy search."""
