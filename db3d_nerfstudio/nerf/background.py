"""The background of the object: a colour, random colours under guidance, or a network of the direction alone.

Photos have rooms behind their subject, and a guide that was tuned on them draws one. If only matter can show it, it
becomes fog; so threestudio and stable-dreamfusion learn a background besides random colours. The background is not part
of the scene, and is not rendered or exported outside of guidance.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from nerfstudio.configs.base_config import InstantiateConfig
from nerfstudio.field_components.encodings import SHEncoding
from nerfstudio.field_components.mlp import MLP
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from db3d_nerfstudio.nerf.colors import Colors
from db3d_nerfstudio.ranges import Count, Share

__all__ = ["Background", "BackgroundConfig"]


@dataclass
class BackgroundConfig(InstantiateConfig):
    """The background of the object."""

    _target: type = field(default_factory=lambda: Background)
    color: tuple[Share, Share, Share] = (1.0, 1.0, 1.0)
    """Red, green and blue in [0, 1], outside of guidance and in guided views without another background."""
    random_prob: Share = 1.0
    """Share of guided views in front of a random colour."""
    learned_prob: Share = 0.0
    """Share of guided views in front of a learned background instead; 0 is off. Use about half if the photos have
    backgrounds: with more, nothing separates the object from its background."""
    hidden_width: Count = 32
    """Width of the hidden layer of the learned background's network."""


class Background(nn.Module):
    """Draws the backgrounds of guided views."""

    def __init__(self, config: BackgroundConfig, colors: int) -> None:
        """Args: `colors` is the number of a colour's channels."""
        super().__init__()
        self.config = config
        self.network: MLP | None = None
        if config.learned_prob > 0:
            # Four levels of spherical harmonics: too smooth to hold a second object.
            self.encoding = SHEncoding(levels=4, implementation="torch")
            self.network = MLP(
                in_dim=self.encoding.get_out_dim(),
                num_layers=2,
                layer_width=config.hidden_width,
                out_dim=colors,
                implementation="torch",
            )

    def param_groups(self) -> dict[str, list[Parameter]]:
        """The network's parameters, if there is one, as "networks"."""
        return {"networks": list(self.parameters())}

    def color(self, device: torch.device) -> Float[Tensor, "3"]:
        """The colour outside of guidance."""
        return torch.tensor(self.config.color, device=device)

    def learned(self, directions: Float[Tensor, "*n 3"], colors: Colors) -> Float[Tensor, "*n c"]:
        """The learned colours in these directions."""
        assert self.network is not None  # Only a background with `learned_prob` has one.
        return colors.activate(self.network(self.encoding(F.normalize(directions, dim=-1))))

    def draw(self, directions: Float[Tensor, "b n 3"], colors: Colors) -> Float[Tensor, "b m c"]:
        """The backgrounds of b guided views in the colours of `colors`; m is 1 if all are plain."""
        device, drawn = directions.device, torch.rand(len(directions), 1, 1)
        random = (drawn < self.config.random_prob).to(device)
        plain = torch.where(random, torch.rand(len(directions), 1, 3).to(device), self.color(device))
        if self.network is None:
            return colors.from_rgb(plain)
        learned = (drawn >= 1 - self.config.learned_prob).to(device)
        return torch.where(learned, self.learned(directions, colors), colors.from_rgb(plain))
