"""What lies behind the object: a colour, random colours under guidance, or a network of the direction alone.

Photos have rooms behind their subject, and a guide that was tuned on them asks for one. Where nothing but matter can
answer, it becomes fog; so threestudio and stable-dreamfusion learn a background beside random colours. It is no matter:
it is in front of nothing, and neither the renderer nor an exporter looks at it.
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
    """What lies behind the object."""

    _target: type = field(default_factory=lambda: Background)
    color: tuple[Share, Share, Share] = (1.0, 1.0, 1.0)
    """Red, green and blue in [0, 1] outside of guidance, and in guided views that are given nothing else."""
    random_prob: Share = 1.0
    """Share of guided views that are put in front of a random colour."""
    learned_prob: Share = 0.0
    """Share of guided views that are put in front of a learned background instead, where photos have one; about half,
    since the object need not end where the background goes on. 0 learns none."""
    hidden_width: Count = 32
    """Width of the hidden layer of the network that is the learned background."""


class Background(nn.Module):
    """Draws what guided views are put in front of."""

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
        """What the network shows in these directions."""
        return colors.activate(self.network(self.encoding(F.normalize(directions, dim=-1))))

    def draw(self, directions: Float[Tensor, "b n 3"], colors: Colors) -> Float[Tensor, "b m c"]:
        """What lies behind each of b guided views, in the sense of `colors`; m is 1 where all are plain."""
        device, drawn = directions.device, torch.rand(len(directions), 1, 1)
        random = (drawn < self.config.random_prob).to(device)
        plain = torch.where(random, torch.rand(len(directions), 1, 3).to(device), self.color(device))
        if self.network is None:
            return colors.from_rgb(plain)
        learned = (drawn >= 1 - self.config.learned_prob).to(device)
        return torch.where(learned, self.learned(directions, colors), colors.from_rgb(plain))
