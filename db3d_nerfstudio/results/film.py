"""`db3d turntable`: a run going round, its colours, normals and depth side by side, as mp4 and gif."""

from __future__ import annotations

import dataclasses
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import numpy as np
import torch
import tyro
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.images import save_animation
from db3d_nerfstudio.paths import command
from db3d_nerfstudio.ranges import Count
from db3d_nerfstudio.workspace import publish

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nerfstudio.cameras.cameras import Cameras
    from nerfstudio.models.base_model import Model

    from db3d_nerfstudio.nerf.model import DreamBooth3DModel

Panel = Literal["rgb", "normals", "depth"]
TURNTABLES = "turntables"
"""The folder in the run folder that training films its NeRFs into."""
TURNTABLE_FRAMES, TURNTABLE_SIZE, TURNTABLE_MILLISECONDS = 24, 128, 100


@dataclass
class TurntableConfig:
    """Film a run on a turntable, as an mp4 and as an endless gif."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder; RUN/initial for the initial NeRF."""
    output: Path | None = None
    """Folder for the films; by default RUN/exports."""
    panels: tuple[Panel, ...] = ("rgb", "normals", "depth")
    """What to show side by side."""
    frames: Count = 48
    """Frames per turn."""
    size: Count = 96
    """Side of a panel, pixels; an even number, as mp4 needs."""
    fps: Count = 16
    """Frames per second."""


def panel(name: Panel, outputs: dict[str, Tensor], distance: float) -> Float[Tensor, "h w 3"]:
    """An output of the model as a picture in front of white.

    Args:
        distance: Of the camera from the origin; depth is coloured from the near to the far end of the unit sphere.
    """
    from nerfstudio.utils.colormaps import ColormapOptions, apply_depth_colormap

    accumulation = outputs["accumulation"]
    if name == "depth":
        near, far = distance - 1, distance + 1
        return apply_depth_colormap(outputs["depth"], accumulation, near, far, ColormapOptions("turbo"))
    colors = (outputs["unit_normals"] + 1) / 2 * accumulation if name == "normals" else outputs["albedo"]
    return colors + (1 - accumulation)


@torch.no_grad()
def render_views(model: Model, cameras: Cameras) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 1 h w"]]:
    """The model seen by each camera, and its accumulation, in [0, 1]; leaves the model in the mode it was in."""
    training = model.training
    model.eval()
    views = [model.get_outputs_for_camera(cameras[i : i + 1].to(model.device)) for i in range(len(cameras))]
    model.train(training)
    images = torch.stack([torch.cat([view["rgb"], view["accumulation"]], -1) for view in views])
    rgb, accumulation = images.permute(0, 3, 1, 2).clamp(0, 1).split([3, 1], 1)
    return rgb, accumulation


@torch.no_grad()
def film(model: DreamBooth3DModel, cameras: Cameras, panels: tuple[Panel, ...]) -> Iterator[UInt8[ndarray, "h w 3"]]:
    """A frame for each camera, its panels side by side."""
    for i in range(len(cameras)):
        camera = cameras[i : i + 1].to(model.device)
        outputs = model.get_outputs_for_camera(camera)
        distance = float(camera.camera_to_worlds[0, :, 3].norm())
        frame = torch.cat([panel(name, outputs, distance) for name in panels], 1)
        yield (frame.clamp(0, 1) * 255).round().byte().cpu().numpy()


def save_film(folder: Path, frames: list[UInt8[ndarray, "h w 3"]], fps: int) -> list[Path]:
    """turntable.mp4 and turntable.gif; each appears whole or not at all."""
    import imageio.v3 as imageio

    settings = {
        "mp4": {"plugin": "FFMPEG", "fps": fps, "codec": "libx264", "quality": 8, "macro_block_size": 2},
        "gif": {"plugin": "pillow", "duration": 1000 / fps, "loop": 0},
    }
    paths = []
    for kind, options in settings.items():
        path = folder / f"turntable.{kind}"
        scratch = folder / f"turntable.tmp.{kind}"
        imageio.imwrite(scratch, np.stack(frames), **options)
        publish(scratch, path)
        paths.append(path)
    return paths


def turntable_path(run: Path, nerf: str) -> Path:
    """Where training puts the film of a NeRF, such as "Initial NeRF"."""
    return run / TURNTABLES / f"{nerf.lower().replace(' ', '-')}.webp"


def save_turntable(model: DreamBooth3DModel, cameras: Cameras, path: Path) -> None:
    """Film colours and normals of a model as an endless WebP; leaves the model in the mode it was in."""
    training = model.training
    model.eval()
    frames = torch.stack([torch.from_numpy(frame) for frame in film(model, cameras, ("rgb", "normals"))])
    model.train(training)
    path.parent.mkdir(exist_ok=True)
    scratch = path.with_suffix(".tmp.webp")
    save_animation(frames.permute(0, 3, 1, 2) / 255, scratch, TURNTABLE_MILLISECONDS)
    publish(scratch, path)


@cache
def _folder_with_ffmpeg() -> TemporaryDirectory[str]:
    """A folder with imageio-ffmpeg's program under its usual name; it goes when this process ends."""
    import imageio_ffmpeg

    folder = TemporaryDirectory(prefix="ffmpeg-")
    Path(folder.name, "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    return folder


def make_ffmpeg_findable() -> None:
    """If there is no ffmpeg on this process's PATH, where `ns-render` looks for it, append imageio-ffmpeg's."""
    if shutil.which("ffmpeg") is None:
        with suppress(RuntimeError):  # No program for this platform: ns-render reports what is missing.
            os.environ["PATH"] += os.pathsep + _folder_with_ffmpeg().name


def main(config: TurntableConfig) -> None:
    """Film the run, and print where the films are."""
    from rich.progress import track

    from db3d_nerfstudio.console import CONSOLE, announce, is_quiet
    from db3d_nerfstudio.results.open_run import exports_folder, open_run

    if config.size < 2 or config.size % 2 or config.frames < 1 or config.fps < 1 or not config.panels:
        raise UserError("a film needs an even --size, and at least one of --frames, --fps and --panels")
    pipeline = open_run(config.run)
    orbit = cast(Any, pipeline.datamanager).config.dataparser  # This package's own, of a layer above.
    cameras, _ = dataclasses.replace(orbit, num_views=config.frames, resolution=config.size).orbit()
    shots = film(cast("DreamBooth3DModel", pipeline.model), cameras, config.panels)
    frames = list(track(shots, "Turntable", config.frames, console=CONSOLE, disable=is_quiet(), transient=True))
    paths = save_film(exports_folder(config.run, config.output), frames, config.fps)
    announce(f"Look at {' and '.join(map(str, paths))}. A mesh: {command('db3d', 'export', config.run)}")
