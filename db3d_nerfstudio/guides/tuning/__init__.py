"""What DreamBooth trains of a guide (all weights, an adapter, or the embedding of one new word), and its files."""
