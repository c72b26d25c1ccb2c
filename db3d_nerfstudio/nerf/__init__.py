"""What is rendered: the field, where rays are sampled, light, losses, and the model that joins them."""
