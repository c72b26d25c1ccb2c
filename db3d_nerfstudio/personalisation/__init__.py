"""DreamBooth on its own: `db3d dreambooth`, `db3d sample` and `db3d tokens`."""
