"""Guides whose network is a UNet: Stable Diffusion, SDXL, DeepFloyd IF."""
