"""The batches of a training step: random cameras for the guide, or pixels of the pseudo views or of a mesh's renders.

This replaces nerfstudio's `RandomCamerasDataManager`, which cannot batch views and does not work with most exporters. A
`VanillaDataManager` over a virtual orbit works with all tools.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from PIL import Image

from db3d_nerfstudio.cameras import image_rays
from db3d_nerfstudio.console import nerfstudio_silenced
from db3d_nerfstudio.ranges import Count
from db3d_nerfstudio.results.posed_images import PosedImages
from db3d_nerfstudio.training.dataparser import DreamBooth3DDataParserConfig
from db3d_nerfstudio.training.random_cameras import RandomCamerasConfig, random_cameras, resolution_at


@dataclass
class DreamBooth3DDataManagerConfig(VanillaDataManagerConfig):
    """The photos' folder (`data`), the orbit of the pseudo views, and the random views."""

    _target: type = field(default_factory=lambda: DreamBooth3DDataManager)
    data: Path | None = None
    """Folder with 3 to 6 photos of the subject."""
    dataparser: DreamBooth3DDataParserConfig = field(default_factory=DreamBooth3DDataParserConfig)
    """The orbit of the pseudo views' cameras."""
    random_cameras: RandomCamerasConfig = field(default_factory=RandomCamerasConfig)
    """The distribution of random views for the guide."""
    views_per_step: Count = 1
    """Number of random views in a micro-step: the batch size of score distillation."""
    train_num_rays_per_batch: Count = 4096
    """Number of pixels in a micro-step of reconstruction; with a perceptual term, one picture is taken whole."""
    eval_num_rays_per_batch: Count = 4096
    """Number of rays in an evaluation batch."""


class PseudoViewDataset(InputDataset):
    """The pseudo views and their cameras; white images until there are any."""

    def get_numpy_image(self, image_idx: int) -> npt.NDArray[np.uint8]:
        """The pseudo view as `[h, w, 3]`, at the size of its camera, whatever the guide's is."""
        camera = self.cameras[image_idx]
        height, width = int(camera.height), int(camera.width)
        if not self.image_filenames[image_idx].exists():
            return np.full((height, width, 3), 255, np.uint8)
        image = super().get_numpy_image(image_idx)
        if image.shape[:2] == (height, width):
            return image
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


class DreamBooth3DDataManager(VanillaDataManager[PseudoViewDataset]):
    """Random-camera batches, and in every second micro-step pixels of pseudo views and of photos with poses, if any."""

    config: DreamBooth3DDataManagerConfig
    progress: float = 0.0
    """Fraction of the current phase that is done."""
    has_pseudo_views: bool = False
    """Whether pseudo views are used in training."""
    fitted: PosedImages | None = None
    """Pictures whose pixels are all that is trained on, if there are any."""
    photos: PosedImages | None = None
    """The photos at their poses, if these are known; they are trained on in every second micro-step."""
    photo_share: float = 0.0
    """Share of these micro-steps in which photos take the place of pseudo views, where there are any."""
    whole_pictures: bool = False
    """Whether a reconstruction micro-step takes one picture, in place of pixels of all."""

    def load_pseudo_views(self) -> None:
        """Read the images that have appeared in the run folder since the data manager was built."""
        with nerfstudio_silenced():
            self.setup_train()
            self.setup_eval()
        self.has_pseudo_views, self.fitted = True, None
        dataset = self.train_dataset
        if self.whole_pictures and dataset is not None:
            images = [dataset.get_numpy_image(index) for index in range(len(dataset))]
            self._pseudo_views = PosedImages(dataset.cameras.to(self.device), torch.from_numpy(np.stack(images)))

    def next_train(self, step: int) -> tuple[RayBundle, dict[str, Any]]:
        """A batch, which decides the loss: pixels for reconstruction, or views for score distillation.

        Outside training, exporters call this for rays towards the object; they get those of the orbit.
        """
        if not self.training:
            return super().next_train(step)
        if self.fitted is not None:
            return self.fitted.draw(self.config.train_num_rays_per_batch)
        if step % 2 == 1 and self.photos is not None and self._takes_photos():
            return self._draw(self.photos)
        if step % 2 == 1 and self.has_pseudo_views:
            return self._draw(self._pseudo_views) if self.whole_pictures else super().next_train(step)
        resolution = resolution_at(self.config.random_cameras, self.progress)
        cameras, views = random_cameras(self.config.random_cameras, self.config.views_per_step, resolution)
        image_shape = (len(cameras), resolution, resolution)
        return image_rays(cameras.to(self.device)), {"views": views, "image_shape": image_shape}

    def _draw(self, pictures: PosedImages) -> tuple[RayBundle, dict[str, Any]]:
        return pictures.draw_picture() if self.whole_pictures else pictures.draw(self.config.train_num_rays_per_batch)

    def _takes_photos(self) -> bool:
        return not self.has_pseudo_views or random.random() < self.photo_share
