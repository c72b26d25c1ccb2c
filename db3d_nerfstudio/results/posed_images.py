"""Pictures and their cameras: what a NeRF or a texture is fitted to."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.utils.poses import multiply
from PIL import Image
from torch import Tensor

from db3d_nerfstudio.camera_files import transforms

Motions = Callable[[Int[Tensor, " n"]], Float[Tensor, "n 3 4"]]
"""Rotation and translation of cameras of these indices, such as nerfstudio's `CameraOptimizer`."""

LENS = ("fl_x", "fl_y", "cx", "cy")
"""Focal lengths and centre of a camera, of one frame or of all."""


@dataclass(frozen=True)
class PosedImages:
    """Pictures of one size and their cameras."""

    cameras: Cameras
    images: UInt8[Tensor, "b h w c"]
    """Colours; with four channels, these are without background, and alpha."""
    motions: Motions | None = None
    """How each camera is moved as a whole, around the origin and then along the axes; by default not at all."""

    def moved(self) -> Cameras:
        """The cameras where the motions have taken them."""
        if self.motions is None:
            return self.cameras
        motions = self.motions(torch.arange(len(self.images), device=self.cameras.device))
        poses = multiply(motions, self.cameras.camera_to_worlds)
        return replace(self.cameras, camera_to_worlds=poses)

    def draw(self, num: int) -> tuple[RayBundle, dict[str, Tensor]]:
        """Rays through `num` random pixels of all pictures, and a batch with the values of these pixels in [0, 1]."""
        return self._pixels(torch.randint(self.images[..., 0].numel(), (num,)))

    def draw_picture(self) -> tuple[RayBundle, dict[str, Any]]:
        """Rays through all pixels of one random picture, row by row; the batch has its height and width too."""
        num, height, width, _ = self.images.shape
        rays, batch = self._pixels(torch.randint(num, (1,)) * height * width + torch.arange(height * width))
        return rays, {**batch, "picture_shape": (height, width)}

    def _pixels(self, index: Int[Tensor, " n"]) -> tuple[RayBundle, dict[str, Tensor]]:
        _, height, width, _ = self.images.shape
        image, row, column = index // (height * width), index // width % height, index % width
        device = self.cameras.device
        coords = torch.stack([row, column], -1).to(device) + 0.5
        rays = self.moved().generate_rays(camera_indices=image[:, None].to(device), coords=coords)
        return rays, {"image": (self.images[image, row, column].float() / 255).to(device)}


def save_posed(folder: Path, cameras: Cameras, views: list[Float[Tensor, "4 h w"]]) -> None:
    """Write pictures and cameras in nerfstudio's format into an empty folder."""
    data = transforms(cameras)
    (folder / "images").mkdir()
    for frame, view in zip(data["frames"], views, strict=True):
        pixels = (view.permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(folder / frame["file_path"])
    (folder / "transforms.json").write_text(json.dumps(data, indent=2) + "\n", "utf8")


def load_posed(folder: Path, device: torch.device | str) -> PosedImages:
    """Pictures and cameras of a folder like that of `save_posed` or of the pseudo views; the cameras on `device`."""
    data = json.loads((folder / "transforms.json").read_text("utf8"))
    poses = torch.tensor([frame["transform_matrix"] for frame in data["frames"]])[:, :3]
    fx, fy, cx, cy = (torch.tensor([[{**data, **frame}[key]] for frame in data["frames"]]) for key in LENS)
    cameras = Cameras(poses, fx, fy, cx, cy, data["w"], data["h"], camera_type=CameraType.PERSPECTIVE)
    images = [_read(folder / frame["file_path"]) for frame in data["frames"]]
    return PosedImages(cameras.to(device), torch.from_numpy(np.stack(images)))


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)
