"""In which order candidates meet documents: racing, its likelihood pre-filter, greedy search."""
