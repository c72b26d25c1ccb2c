"""Time and memory of training steps and fine-tuning."""
