"""The results of a run: meshes, films, a report."""
