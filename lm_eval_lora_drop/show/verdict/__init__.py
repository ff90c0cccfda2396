"""What may be said of a choice, in text: the table of a sweep, the verdict, its stability, the last screen."""
