"""Pseudo multi-view photos of the subject (DreamBooth3D section 3.2): a dataset on disk that anybody can open.

RUN/pseudo_views/
    images/000.png        the pseudo views: renders translated into the subject
    renders/000.png       the initial NeRF's renders they were made from
    transforms.json       their cameras; `ns-train nerfacto --data RUN/pseudo_views` reads it
    contact_sheet.png     photos, renders and pseudo views, one row each
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.models.base_model import Model
from torch import Tensor

from db3d_nerfstudio.images import contact_sheet, image_to_tensor, tensor_to_image
from db3d_nerfstudio.photos import load_photo


class PseudoViewDataset(InputDataset):
    """The pseudo views and their cameras; white images as long as there are none."""

    def get_numpy_image(self, image_idx: int) -> npt.NDArray[np.uint8]:
        """The pseudo view as `[h, w, 3]`."""
        if self.image_filenames[image_idx].exists():
            return super().get_numpy_image(image_idx)
        camera = self.cameras[image_idx]
        return np.full((int(camera.height), int(camera.width), 3), 255, np.uint8)


@torch.no_grad()
def render(model: Model, cameras: Cameras) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 1 h w"]]:
    """The model seen by each camera, and its accumulation, in [0, 1]; leaves the model in the mode it was in."""
    training = model.training
    model.eval()
    views = [model.get_outputs_for_camera(cameras[i : i + 1].to(model.device)) for i in range(len(cameras))]
    model.train(training)
    images = torch.stack([torch.cat([view["rgb"], view["accumulation"]], -1) for view in views])
    rgb, accumulation = images.permute(0, 3, 1, 2).clamp(0, 1).split([3, 1], 1)
    return rgb, accumulation


def widened(accumulation: Float[Tensor, "b 1 h w"], margin: float) -> Float[Tensor, "b 1 h w"]:
    """1 in the silhouettes and up to `margin` of the image's width away from them, else 0."""
    reach = round(margin * accumulation.shape[-1])
    silhouettes = (accumulation > 0.5).float()
    return torch.nn.functional.max_pool2d(silhouettes, 2 * reach + 1, stride=1, padding=reach)


def save_pseudo_views(
    path: Path,
    cameras: Cameras,
    photos: Float[Tensor, "n 3 hp wp"],
    renders: Float[Tensor, "b 3 h w"],
    translated: Float[Tensor, "b 3 ht wt"],
) -> None:
    """Write the dataset; the pseudo views get the size of their cameras' images."""
    size = renders.shape[-2:]
    translated = torch.nn.functional.interpolate(translated, size, mode="bilinear", antialias=True)
    for name, images in (("renders", renders), ("images", translated)):
        (path / name).mkdir(parents=True)
        for i, image in enumerate(images):
            tensor_to_image(image).save(path / name / f"{i:03d}.png")
    (path / "transforms.json").write_text(json.dumps(transforms(cameras), indent=2) + "\n", "utf8")
    tensor_to_image(contact_sheet([photos, renders, translated])).save(path / "contact_sheet.png")


def load_pseudo_views(path: Path) -> Float[Tensor, "b 3 h w"]:
    """The pseudo views of a run, in [0, 1]."""
    with_size = json.loads((path / "transforms.json").read_text("utf8"))
    files = [path / frame["file_path"] for frame in with_size["frames"]]
    return torch.stack([image_to_tensor(load_photo(file, with_size["w"])) for file in files])


def transforms(cameras: Cameras) -> dict[str, object]:
    """Cameras of one kind in the format of nerfstudio's `transforms.json`."""
    first = cameras[0]
    intrinsics = {"fl_x": first.fx, "fl_y": first.fy, "cx": first.cx, "cy": first.cy}
    bottom = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    return {
        "camera_model": "OPENCV",
        **{key: float(value) for key, value in intrinsics.items()},
        "w": int(first.width),
        "h": int(first.height),
        "frames": [
            {"file_path": f"images/{i:03d}.png", "transform_matrix": torch.cat([pose.cpu(), bottom]).tolist()}
            for i, pose in enumerate(cameras.camera_to_worlds)
        ],
    }


def in_chunks(
    translate: Callable[[Float[Tensor, "c 3 h w"], slice], Float[Tensor, "c 3 ht wt"]],
    renders: Float[Tensor, "b 3 h w"],
    chunk: int,
) -> Float[Tensor, "b 3 ht wt"]:
    """Translate a few renders at a time; `translate` is told which ones it has."""
    parts = [slice(i, i + chunk) for i in range(0, len(renders), chunk)]
    return torch.cat([translate(renders[part], part) for part in parts])
