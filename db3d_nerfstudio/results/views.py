"""`db3d export RUN --views 24`: pictures of a run with alpha, masks and poses, for programs that take views.

VIEWS/
    images/000.png       colours and alpha, as image-to-3D models read them (TRELLIS, ReconViaGen)
    sides/front.png      the same from front, left, back and right at eye level, for models that ask for named sides
                         (Hunyuan3D-2mv); left is the subject's own left
    masks/000.png        white where the subject is
    transforms.json      the poses for nerfstudio; points.ply are points to start Gaussians from
    sparse/0/            the poses and the points for COLMAP and Gaussian splatting
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from db3d_nerfstudio.camera_files import SurfacePoints, save_colmap, transforms
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.workspace import Workspace, listing

if TYPE_CHECKING:
    from nerfstudio.cameras.cameras import Cameras
    from nerfstudio.models.base_model import Model
    from nerfstudio.pipelines.base_pipeline import Pipeline

VIEWS = "views"
SIDES = ("front", "left", "back", "right")
"""At azimuths 0, 90, 180 and 270 degrees."""
NUM_POINTS = 5000
"""Points on the surface, from all views together."""


@torch.no_grad()
def shoot(model: Model, camera: Cameras) -> tuple[Float[Tensor, "h w 4"], Float[Tensor, "h w 3"]]:
    """What one camera sees: colours without background and alpha, in [0, 1]; and the points of the surface."""
    outputs = model.get_outputs_for_camera(camera)
    alpha = outputs["accumulation"]
    rgba = torch.cat([outputs["albedo"] / alpha.clamp_min(1e-6), alpha], -1).clamp(0, 1)
    rays = camera.generate_rays(camera_indices=0)
    return rgba.cpu(), (rays.origins + rays.directions * outputs["depth"]).cpu()


def surface_points(
    rgba: Float[Tensor, "b h w 4"], surface: Float[Tensor, "b h w 3"], num: int = NUM_POINTS
) -> SurfacePoints:
    """At most `num` points of opaque pixels, evenly from all pictures.

    Raises:
        UserError: no pixel is opaque.
    """
    opaque = (rgba[..., 3] > 0.5).nonzero()
    if not len(opaque):
        raise UserError("the scene is empty: no view of it has an opaque pixel. Look at it in ns-viewer")
    camera, row, column = opaque[:: -(-len(opaque) // num)].unbind(1)
    return SurfacePoints(
        positions=surface[camera, row, column].double().numpy(),
        colors=_bytes(rgba[camera, row, column, :3]),
        camera=camera.numpy(),
        pixels=torch.stack([column, row], -1).double().numpy() + 0.5,
    )


def _bytes(values: Tensor) -> np.ndarray:
    return (values * 255).round().byte().numpy()


def save_views(
    folder: Path,
    cameras: Cameras,
    rgba: Float[Tensor, "b h w 4"],
    points: SurfacePoints,
    sides: Float[Tensor, "4 h w 4"],
) -> None:
    """Write pictures, masks and poses into an empty folder."""
    import trimesh

    names = [f"{i:03d}.png" for i in range(len(rgba))]
    for kind in ("images", "masks", "sides"):
        (folder / kind).mkdir()
    for name, view in zip(names, rgba, strict=True):
        Image.fromarray(_bytes(view)).save(folder / "images" / name)
        Image.fromarray(_bytes((view[..., 3] > 0.5).float())).save(folder / "masks" / name)
    for side, view in zip(SIDES, sides, strict=True):
        Image.fromarray(_bytes(view)).save(folder / "sides" / f"{side}.png")
    trimesh.PointCloud(points.positions, colors=points.colors).export(folder / "points.ply")
    # Without `mask_path`: nerfstudio would never look at pixels outside of the masks, and fill them with anything.
    data = transforms(cameras) | {"ply_file_path": "points.ply"}
    (folder / "transforms.json").write_text(json.dumps(data, indent=2) + "\n", "utf8")
    save_colmap(folder / "sparse" / "0", cameras, names, points)


def export_views(pipeline: Pipeline, checkpoints: Path, folder: Path, num: int, size: int) -> Path:
    """Write `num` views of `size` pixels, evenly spaced on the orbit of the pseudo views, to `folder`/views.

    Views that lie there are kept if they are of the same checkpoint, number and size.
    """
    from rich.progress import track

    from db3d_nerfstudio.console import CONSOLE, is_quiet

    orbit = cast(Any, pipeline.datamanager).config.dataparser  # This package's own, of a layer above.
    cameras, _ = dataclasses.replace(orbit, num_views=num, resolution=size).orbit()
    around, _ = dataclasses.replace(orbit, num_views=len(SIDES), resolution=size, elevation=0.0).orbit()

    def each(cameras: Cameras) -> Iterator[tuple[Tensor, Tensor]]:
        for i in range(len(cameras)):
            yield shoot(pipeline.model, cameras[i : i + 1].to(pipeline.model.device))

    def make(path: Path) -> None:
        shots = track(each(cameras), "Views", num, console=CONSOLE, disable=is_quiet(), transient=True)
        rgba, surface = (torch.stack(part) for part in zip(*shots, strict=True))
        save_views(path, cameras, rgba, surface_points(rgba, surface), torch.stack([rgba for rgba, _ in each(around)]))

    recipe = {"checkpoint": listing(checkpoints), "views": num, "size": size}
    return Workspace(folder).once(VIEWS, recipe, make, stale="replace")
