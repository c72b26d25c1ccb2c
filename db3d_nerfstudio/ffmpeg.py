"""`ns-render` looks for ffmpeg on PATH; the package imageio-ffmpeg brings one under another name."""

import os
import shutil
from pathlib import Path

CACHE = Path.home() / ".cache" / "db3d_nerfstudio" / "bin"


def make_ffmpeg_findable(folder: Path = CACHE) -> None:
    """If there is no ffmpeg on PATH, put a folder there that links to imageio-ffmpeg's."""
    if shutil.which("ffmpeg"):
        return
    link = folder / "ffmpeg"
    if not link.exists():
        try:
            import imageio_ffmpeg

            folder.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
        except (ImportError, OSError, RuntimeError):
            return  # ns-render itself says what is missing, and nothing else needs it.
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}{os.pathsep}{folder}"
