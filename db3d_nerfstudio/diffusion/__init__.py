"""What is done with any guide: distillation, sampling, DreamBooth, each written once."""
