"""Presets: one file is one `ns-train` method, written as a diff of another."""

from db3d_nerfstudio.console import ignore_known_warnings

ignore_known_warnings()  # Every ns-* command starts here, as soon as nerfstudio has imported itself.
