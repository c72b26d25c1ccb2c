"""Metrics of renders, meshes and samples."""
