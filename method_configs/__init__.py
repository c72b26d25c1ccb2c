"""Presets: one file is one `ns-train` method, written as a diff of another."""
