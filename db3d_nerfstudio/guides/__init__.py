"""Diffusion guides: one file each, primitives only (see `base.py`)."""
