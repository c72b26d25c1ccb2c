"""The embedded world: procedural subjects, their captions, and a small text-to-image model trained on them."""
