"""A small NeRF of known shape, guided batches and their losses, for tests of everything that renders."""

import dataclasses

import torch
from nerfstudio.data.scene_box import SceneBox
from tiny import GaussianGuideConfig

from db3d_nerfstudio.cameras import image_rays, orbit_cameras
from db3d_nerfstudio.nerf.field import GridFieldConfig
from db3d_nerfstudio.nerf.losses import LossWeights
from db3d_nerfstudio.nerf.model import DreamBooth3DModelConfig
from db3d_nerfstudio.nerf.occupancy import OccupancySamplerConfig
from db3d_nerfstudio.nerf.shading import ShadingConfig

SIZE = 16
FIELD = GridFieldConfig(resolutions=(4, 9), hidden_width=8)
LIT, UNLIT = ShadingConfig(warmup=0.0, lambertian_prob=1.0), ShadingConfig(lambertian_prob=0.0)

NO_LOSSES = LossWeights(**dict.fromkeys((field.name for field in dataclasses.fields(LossWeights)), 0.0))


def build(**changes):
    torch.manual_seed(0)
    config = DreamBooth3DModelConfig(
        prompt="a photo of a sks robot",
        guide=GaussianGuideConfig(resolution=SIZE),
        field=FIELD,
        sampler=OccupancySamplerConfig(num_samples=24, resolution=8),
        shading=UNLIT,
    )
    box = SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    return dataclasses.replace(config, **changes).setup(scene_box=box, num_train_data=1)


def guided_batch(num=2):
    cameras, views = orbit_cameras(num, elevation=10.0, radius=3.0, fov=40.0, resolution=SIZE)
    return image_rays(cameras), {"views": views, "image_shape": (num, SIZE, SIZE)}


def losses_of(model, batch=None, seed=1):
    rays, guided = guided_batch()
    torch.manual_seed(seed)
    return model.get_loss_dict(model(rays), guided if batch is None else batch(rays))


def pixels(rays, channels=3):
    return {"image": torch.full((len(rays), channels), 0.25)}


def solid(model, density=20.0, raw=(8.0, -8.0, -8.0)):
    """A red ball of radius 0.5 with fully known shape: only the blob is left, the network outputs constants."""
    layers = model.field.param_groups()["networks"]
    for parameter in layers:
        parameter.data.zero_()
    layers[-1].data[1:] = torch.as_tensor(raw)
    changes = {"blob_density": density * 20, "blob_radius": 0.5, "density_scale": density}
    model.field.config = dataclasses.replace(FIELD, **changes)
    return model
