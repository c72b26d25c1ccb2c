"""Poses of photos: the directions from which an asset looks most like them (analysis by synthesis).

Only the direction is searched. Size and place of the subject in the picture are those of its silhouette, so that a
crop, a zoom or another focal length make no difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from db3d_nerfstudio.cameras import Views, look_at

STEP = 15.0
"""Degrees between the directions of the coarse search; each refinement halves them."""
ELEVATIONS = (0.0, 15.0, 30.0, 45.0)
"""Of the coarse search, degrees above the horizon."""
REFINEMENTS = 3

CutOut = Float[Tensor, "1 4 h w"]
CutOuts = Float[Tensor, "b 4 h w"]
"""Colours times alpha, and alpha."""
Direction = tuple[float, float]
"""Azimuth and elevation, degrees."""
Renderer = Callable[[Sequence[Direction]], CutOuts]
"""The asset seen from directions, at one distance."""


@dataclass(frozen=True)
class PhotoPose:
    """From where a photo was taken, and how well the asset fits it."""

    azimuth: float
    """Degrees from the subject's front."""
    elevation: float
    """Degrees above the horizon."""
    zoom: float
    """Size of the subject in the photo, over that in a render."""
    shift: tuple[float, float]
    """Where the photo shows the origin, from its middle to the right and down, in halves of its width."""
    mismatch: float
    """0 for a render, about 1 or more where the silhouettes do not overlap; see `mismatches`."""


def frames(alpha: Float[Tensor, "b 1 h w"]) -> tuple[Float[Tensor, "b 2"], Float[Tensor, " b"]]:
    """Centroid of each silhouette, in halves of the picture's size from its middle, and the root of its area."""
    rows, columns = (torch.arange(side, device=alpha.device) + 0.5 for side in alpha.shape[-2:])
    area = alpha.sum((1, 2, 3)).clamp_min(1e-6)
    x = (alpha * (columns / alpha.shape[-1] * 2 - 1)).sum((1, 2, 3)) / area
    y = (alpha * (rows / alpha.shape[-2] * 2 - 1)[:, None]).sum((1, 2, 3)) / area
    return torch.stack([x, y], -1), (area / alpha[0].numel()).sqrt()


def placements(photo: CutOut, renders: CutOuts) -> tuple[Float[Tensor, " b"], Float[Tensor, "b 2"]]:
    """Zoom and shift that lay each render over the photo: a render's point x is at `zoom * x + shift` of the photo."""
    (photo_centre, photo_size), (centres, sizes) = frames(photo[:, 3:]), frames(renders[:, 3:])
    zoom = photo_size / sizes
    return zoom, photo_centre - zoom[:, None] * centres


def mismatches(photo: CutOut, renders: CutOuts) -> Float[Tensor, " b"]:
    """Absolute differences of alpha and of colour between the photo, laid over each render, and the render.

    Both are divided by the area that either silhouette covers, so a mismatch does not depend on size.
    """
    zoom, shift = placements(photo, renders)
    scaling = torch.eye(2, device=zoom.device) * zoom[:, None, None]
    grid = affine_grid(torch.cat([scaling, shift[:, :, None]], -1), list(renders.shape), align_corners=False)
    laid = grid_sample(photo.expand(len(renders), -1, -1, -1), grid, align_corners=False)
    difference = (laid - renders).abs().sum((2, 3))
    covered = torch.maximum(laid[:, 3], renders[:, 3]).sum((1, 2)).clamp_min(1e-6)
    return (difference[:, 3] + difference[:, :3].mean(1)) / covered


def find_poses(
    render: Renderer, photos: Float[Tensor, "n 4 h w"], azimuths: Sequence[Sequence[float]]
) -> list[PhotoPose]:
    """The pose of each photo: the best of a grid of directions, refined.

    Args:
        render: Pictures as large as the photos.
        photos: Cut-outs, colours times alpha.
        azimuths: Those that each photo may have, in steps of `STEP`.
    """
    known = [(azimuth, el) for azimuth in sorted({*sum(map(list, azimuths), [])}) for el in ELEVATIONS]
    coarse = dict(zip(known, render(known), strict=True))
    poses = []
    for photo, allowed in zip(photos, azimuths, strict=True):
        directions = [(azimuth, el) for azimuth in allowed for el in ELEVATIONS]
        pose = _best(photo[None], directions, torch.stack([coarse[direction] for direction in directions]))
        for refinement in range(1, REFINEMENTS + 1):
            near = _around((pose.azimuth, pose.elevation), STEP / 2**refinement)
            pose = _best(photo[None], near, render(near))
        poses.append(pose)
    return poses


def _around(direction: Direction, step: float) -> list[Direction]:
    azimuth, elevation = direction
    offsets = (-step, 0.0, step)
    return [(azimuth + right, min(elevation + up, 89.0)) for right in offsets for up in offsets]


def _best(photo: CutOut, directions: Sequence[Direction], renders: CutOuts) -> PhotoPose:
    errors = mismatches(photo, renders)
    index = int(errors.argmin())
    zoom, shift = placements(photo, renders[index : index + 1])
    x, y = shift[0].tolist()
    return PhotoPose(*directions[index], float(zoom), (x, y), float(errors[index]))


def pose_cameras(poses: Sequence[PhotoPose], radius: float, fov: float, resolution: int) -> Cameras:
    """The cameras of photos whose poses were found with renders from `radius` with the field of view `fov`."""
    views = direction_views([(pose.azimuth, pose.elevation) for pose in poses], radius, fov)
    zero = torch.zeros(len(poses), 3)
    focal = 0.5 * resolution / math.tan(math.radians(fov) / 2) * torch.tensor([[pose.zoom] for pose in poses])
    centre = (torch.tensor([pose.shift for pose in poses]) + 1) / 2 * resolution
    return Cameras(
        look_at(views, zero, zero, zero), focal, focal, centre[:, :1], centre[:, 1:], resolution, resolution,
        camera_type=CameraType.PERSPECTIVE,
    )  # fmt: skip


def direction_views(directions: Sequence[Direction], radius: float, fov: float) -> Views:
    """Directions as the positions of cameras."""
    azimuth, elevation = torch.tensor(directions).unbind(-1)
    return Views(elevation, azimuth, torch.full_like(azimuth, radius), torch.full_like(azimuth, fov))
