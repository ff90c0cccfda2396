"""What is published of a run: model card and the Hub's evaluation files. Reads the record only."""
