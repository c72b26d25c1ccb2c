"""Cameras as files: nerfstudio's `transforms.json`, and COLMAP's `cameras.txt`, `images.txt` and `points3D.txt`.

nerfstudio's cameras look along -z with y up; COLMAP's look along +z with y down. The world is the same in both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from nerfstudio.cameras.cameras import Cameras
from numpy import ndarray

COLMAP_CAMERA = 1
"""Id of the only camera, which takes all pictures; COLMAP counts from 1."""
OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0])


@dataclass(frozen=True)
class SurfacePoints:
    """Points on the surface, each seen by one camera."""

    positions: Float[ndarray, "n 3"]
    """Scene units."""
    colors: UInt8[ndarray, "n 3"]
    camera: Int[ndarray, " n"]
    """Index of the camera that sees the point."""
    pixels: Float[ndarray, "n 2"]
    """Column and row in its picture; the centre of the first pixel is (0.5, 0.5)."""


def transforms(cameras: Cameras, larger: float = 1.0) -> dict[str, Any]:
    """Cameras in the format of nerfstudio's `transforms.json`, for images `larger` times as wide.

    Their focal lengths and centres are written for each frame if they differ.
    """
    first = cameras[0]
    names = {"fl_x": cameras.fx, "fl_y": cameras.fy, "cx": cameras.cx, "cy": cameras.cy}
    each = [{key: float(values[i]) * larger for key, values in names.items()} for i in range(len(cameras))]
    same = all(lens == each[0] for lens in each)
    bottom = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    return {
        "camera_model": "OPENCV",
        **(each[0] if same else {}),
        "w": round(int(first.width) * larger),
        "h": round(int(first.height) * larger),
        "frames": [
            {
                "file_path": f"images/{i:03d}.png",
                "transform_matrix": torch.cat([pose.cpu(), bottom]).tolist(),
                **({} if same else each[i]),
            }
            for i, pose in enumerate(cameras.camera_to_worlds)
        ],
    }


def save_colmap(folder: Path, cameras: Cameras, names: Sequence[str], points: SurfacePoints) -> None:
    """Write cameras of one kind, the names of their pictures and the points as a COLMAP model, in text."""
    from nerfstudio.data.utils.colmap_parsing_utils import BaseImage, Camera, Point3D, rotmat2qvec, write_model

    first = cameras[0]
    lens = [float(value) for value in (first.fx, first.fy, first.cx, first.cy)]
    camera = Camera(COLMAP_CAMERA, "PINHOLE", int(first.width), int(first.height), lens)
    images, solids = {}, {}
    for i, (pose, name) in enumerate(zip(cameras.camera_to_worlds.double().cpu().numpy(), names, strict=True), 1):
        turn = (pose[:, :3] @ OPENGL_TO_OPENCV).T
        seen = (points.camera == i - 1).nonzero()[0]
        placed = (rotmat2qvec(turn).tolist(), (-turn @ pose[:, 3]).tolist(), COLMAP_CAMERA, name)
        images[i] = BaseImage(i, *placed, points.pixels[seen].tolist(), (seen + 1).tolist())
        for where, point in enumerate(seen.tolist()):
            color, position = points.colors[point].tolist(), points.positions[point].tolist()
            solids[point + 1] = Point3D(point + 1, position, color, 0.0, [i], [where])
    folder.mkdir(parents=True)
    write_model({COLMAP_CAMERA: camera}, images, solids, folder, ext=".txt")
