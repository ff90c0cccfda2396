"""What is published of a run: model card, the Hub's evaluation files, Every Eval Ever. Reads the record only."""
