"""What reaches into lm-eval's command line: registration, our last screen, one-line errors."""
