"""Rectified flows as guides: transformers that predict the velocity from an image to noise."""
