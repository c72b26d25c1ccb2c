"""What is measured on renders, meshes and samples."""
