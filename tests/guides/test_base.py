"""The recipe for a guide in `guides/base.py`: complete, and enough."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Parameter

from db3d_nerfstudio.diffusion import DreamBoothConfig, SamplingConfig, TrainingSet, draw, finetune
from db3d_nerfstudio.guides import base
from db3d_nerfstudio.guides.base import DiffusionGuide, DiffusionGuideConfig


@dataclass
class MyGuideConfig(DiffusionGuideConfig):
    """Settings of a guide with the members that the recipe names and no others."""

    _target: type = field(default_factory=lambda: MyGuide)


class MyGuide(DiffusionGuide):
    """Every image is grey."""

    dtype, resolution, z_shape = torch.float32, 4, (3, 4, 4)
    prediction_type, learning_rate = "epsilon", 0.1

    def __init__(self, config: MyGuideConfig, device: torch.device | str = "cpu") -> None:
        self.device, self.alphas_cumprod = torch.device(device), torch.linspace(0.999, 0.01, 100, device=device)
        self.grey = Parameter(torch.tensor(0.5, device=device))

    def encode(self, rgb: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hz wz"]:
        return rgb

    def decode(self, z: Float[Tensor, "b c hz wz"]) -> Float[Tensor, "b 3 h w"]:
        return z.clamp(0, 1)

    def embed(self, prompts: list[str]) -> Float[Tensor, "b n d"]:
        return torch.zeros(len(prompts), 1, 1, device=self.device)

    def predict_noise(
        self, z_t: Float[Tensor, "b c hz wz"], t: Int[Tensor, " b"], text: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b c hz wz"]:
        abar = self.alphas_cumprod[t][:, None, None, None]
        return (z_t - abar.sqrt() * self.grey) / (1 - abar).sqrt()

    def parameters(self) -> list[Parameter]:
        return [self.grey]

    def save(self, path: Path) -> None:
        raise NotImplementedError

    def load(self, path: Path | None) -> None:
        raise NotImplementedError

    def fingerprint(self) -> str:
        return str(self.grey.item())


def test_a_guide_by_the_recipe_draws_and_learns() -> None:
    guide = MyGuideConfig().setup(device="cpu")
    images = draw(guide, ["anything"] * 2, SamplingConfig(steps=5), seed=0)
    torch.testing.assert_close(images, torch.full((2, 3, 4, 4), 0.5), atol=1e-4, rtol=0)
    data = TrainingSet(torch.full((1, 3, 4, 4), 0.9), [{"anything": 1.0}])
    finetune(guide, data, DreamBoothConfig(prior_loss_weight=0.0, batch_size=8), max_train_steps=20, seed=0)
    assert guide.grey > 0.7


def test_the_recipe_names_every_member() -> None:
    recipe = base.__doc__[base.__doc__.index("Writing a guide") :]
    named = set(re.findall(r"`(\w+)`", recipe))
    optional = {name for name in vars(DiffusionGuide) if name[0] != "_"} - DiffusionGuide.__abstractmethods__
    assert named >= DiffusionGuide.__abstractmethods__ | set(DiffusionGuide.__annotations__) | optional
