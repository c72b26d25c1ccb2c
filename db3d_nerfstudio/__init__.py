"""DreamBooth3D (Raj et al. 2023, arXiv 2303.13508) as a nerfstudio plugin."""
