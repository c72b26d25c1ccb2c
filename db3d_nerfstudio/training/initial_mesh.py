"""RUN/mesh_views: an asset from elsewhere, seen from all round; the initial NeRF is fitted to it.

RUN/mesh_views/
    images/000.png       colours and alpha
    transforms.json      their cameras; `ns-train nerfacto --data RUN/mesh_views` reads it
    front.json           where in the file the front is, degrees
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from db3d_nerfstudio.cameras import spiral_cameras
from db3d_nerfstudio.console import announce
from db3d_nerfstudio.diffusion.front import guess_front
from db3d_nerfstudio.results.asset import Asset, picture_asset, read_asset
from db3d_nerfstudio.results.posed_images import save_posed
from db3d_nerfstudio.training.context import RunContext
from db3d_nerfstudio.training.dataparser import DreamBooth3DDataParserConfig
from db3d_nerfstudio.training.phases import InitialPhaseConfig
from db3d_nerfstudio.workspace import digest_of

FOLDER = "mesh_views"
ELEVATIONS = (-30.0, 80.0)
"""Of the renders, degrees above the horizon; guided views of the final NeRF lie between."""
NUM_GUESSED = 8
"""Renders by which the front is guessed: one for every direction that has a name."""


def recipe(config: InitialPhaseConfig, orbit: DreamBooth3DDataParserConfig) -> dict[str, Any]:
    """What decides the renders of a mesh whose front is known."""
    assert config.mesh is not None  # Callers ask only if there is one.
    return {
        "mesh": digest_of(config.mesh),
        "up": config.mesh_up,
        "front": config.mesh_front,
        "views": config.mesh_views,
        "mesh_cameras": {key: getattr(orbit, key) for key in ("radius", "fov", "resolution")},
    }


def make(context: RunContext, config: InitialPhaseConfig, class_prompt: str, path: Path) -> None:
    """Render the mesh into an empty folder, its front at azimuth 0.

    Args:
        class_prompt: What the guide calls a thing of its kind, to guess the front.
    """
    asset, orbit = _read(config), context.datamanager.config.dataparser
    front = config.mesh_front
    if front is None:
        front = _guess(context, asset, class_prompt)
        announce(f"The front of {config.mesh} is at {front % 360:.0f} degrees (--pipeline.phases.initial.mesh-front)")
    (path / "front.json").write_text(json.dumps({"front": front}) + "\n", "utf8")
    cameras, _ = spiral_cameras(config.mesh_views, ELEVATIONS, orbit.radius, orbit.fov, orbit.resolution)
    save_posed(path, cameras, list(picture_asset(asset.turned(front), cameras)))


def render(
    context: RunContext, config: InitialPhaseConfig, path: Path, cameras: Cameras
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 1 h w"]]:
    """The mesh as the NeRF's renderer would show it, in front of the model's background, and its alpha.

    Args:
        path: The folder that `make` has filled.
    """
    front = json.loads((path / "front.json").read_text("utf8"))["front"]
    return _in_front(context, _read(config).turned(front), cameras)


def _read(config: InitialPhaseConfig) -> Asset:
    assert config.mesh is not None  # Callers ask only if there is one.
    return read_asset(config.mesh, config.mesh_up)


def _guess(context: RunContext, asset: Asset, class_prompt: str) -> float:
    """The azimuth of the front, by the untouched guide."""
    guide, orbit = context.guide, context.datamanager.config.dataparser
    cameras, views = replace(orbit, num_views=NUM_GUESSED, resolution=guide.resolution).orbit()
    with context.unlocked():
        guide.load(None)
        return guess_front(guide, _in_front(context, asset, cameras)[0], views, class_prompt, context.seed)


def _in_front(
    context: RunContext, asset: Asset, cameras: Cameras
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 1 h w"]]:
    rgba = torch.stack(list(picture_asset(asset, cameras))).to(context.model.device)
    color, alpha = rgba.split([3, 1], 1)
    return color * alpha + (1 - alpha) * context.model.background.color(rgba.device)[:, None, None], alpha
