"""What one takes home from a run: meshes, films, a report."""
