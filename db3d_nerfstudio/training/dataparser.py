"""Virtual cameras on an orbit around the scene, as the photos have no poses."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox

from db3d_nerfstudio.cameras import Views, orbit_cameras
from db3d_nerfstudio.ranges import Angle, Count, FieldOfView, Positive


@dataclass
class DreamBooth3DDataParserConfig(DataParserConfig):
    """The photos folder, and the orbit of the pseudo views' cameras."""

    _target: type = field(default_factory=lambda: DreamBooth3DDataParser)
    data: Path | None = None
    """The data manager's folder of photos; a text-only run has none."""
    num_views: Count = 20
    """Number of pseudo views, evenly spaced in azimuth from the front (the paper's 20)."""
    elevation: Angle = 20.0
    """Height of the orbit above the horizon, in degrees."""
    radius: Positive = 3.05
    """Distance of the orbit's cameras from the origin; the subject lies inside the unit sphere."""
    fov: FieldOfView = 40.0
    """Vertical field of view of the orbit's cameras, in degrees."""
    resolution: Count = 64
    """Side of a pseudo view, in pixels."""
    pseudo_views: Path | None = None
    """Folder of the pseudo views; the trainer sets it to the one in the run folder."""

    def orbit(self) -> tuple[Cameras, Views]:
        """The cameras of the pseudo views, and their positions."""
        return orbit_cameras(self.num_views, self.elevation, self.radius, self.fov, self.resolution)


@dataclass
class DreamBooth3DDataParser(DataParser):
    """Orbit cameras, with the pseudo views as their images as soon as these exist."""

    config: DreamBooth3DDataParserConfig

    def _generate_dataparser_outputs(self, split: str = "train") -> DataparserOutputs:
        folder = (self.config.pseudo_views or Path("pseudo_views")) / "images"
        cameras, _ = self.config.orbit()
        return DataparserOutputs(
            image_filenames=[folder / f"{i:03d}.png" for i in range(len(cameras))],
            cameras=cameras,
            scene_box=SceneBox(aabb=torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])),
        )
