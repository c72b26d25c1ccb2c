"""Taking a run home: textured meshes, a page that shows them, films."""
