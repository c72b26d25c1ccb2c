"""The NeRF's field: density and colour of points in the scene box [-1, 1]^3, with normals that shape the density.

Both fields share everything but their features: `GridField` interpolates dense grids with `grid_sample`, which is some
20 times faster on a CPU than a hash grid in torch; `HashField` is nerfstudio's hash grid, for tinycudann on a GPU.

It replaces nerfstudio's fields because their normals are detached from the graph (`Field.get_normals` has no
`create_graph`): through them neither shading nor the orientation loss would ever move the density.
"""

import abc
import importlib.util
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from nerfstudio.configs.base_config import InstantiateConfig
from nerfstudio.field_components.activations import trunc_exp
from nerfstudio.field_components.encodings import HashEncoding
from nerfstudio.field_components.mlp import MLP
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from db3d_nerfstudio.nerf.colors import RGB, Latents

__all__ = ["Field", "FieldConfig", "GridField", "GridFieldConfig", "HashField", "HashFieldConfig"]


@dataclass
class FieldConfig(InstantiateConfig):
    """What every field has in common."""

    _target: type = field(default_factory=lambda: Field)
    blob: Literal["linear", "gaussian"] = "linear"
    """Density that is always added before the activation: Magic3D's cone (2211.10440) or DreamFusion's Gaussian."""
    blob_density: float = 10.0
    """Height of the blob at the origin, before the activation."""
    blob_radius: float = 0.5
    """Where the linear blob crosses zero, or the Gaussian's standard deviation; scene units."""
    activation: Literal["softplus", "exp"] = "softplus"
    """What turns the raw output into a density; `exp` is nerfstudio's truncated exponential."""
    density_scale: float = 25.0
    """Density that the activation of 1 stands for, per scene unit; surfaces as thin as a sample need some 100."""
    normals: Literal["analytic", "finite_difference"] = "finite_difference"
    """How the density is differentiated: a second backward pass, which tinycudann's networks lack, or six more
    evaluations. They cost the same on a CPU; differences over a grid cell are the smoother normals."""
    normal_epsilon: float = 0.03
    """Half the distance between the two evaluations of a finite difference, scene units."""
    hidden_width: int = 32
    """Width of the network's hidden layer."""
    latent_channels: int | None = None
    """Channels of the guide's z, if the colours are z, as in Latent-NeRF; unset, they are red, green and blue."""


class Field(nn.Module, abc.ABC):
    """Density and colour over space. Subclasses say how features are looked up and decoded, in `_raw`."""

    config: FieldConfig

    def __init__(self, config: FieldConfig) -> None:
        super().__init__()
        self.config = config
        self.colors = RGB() if config.latent_channels is None else Latents(config.latent_channels)

    @abc.abstractmethod
    def _raw(self, positions: Float[Tensor, "n 3"]) -> Float[Tensor, "n d"]:
        """Density and colours before blob and activations."""

    @abc.abstractmethod
    def param_groups(self) -> dict[str, list[Parameter]]:
        """All parameters: what is looked up as "encodings", what decodes it as "networks"."""

    def density(self, positions: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Extinction per scene unit."""
        return self._activate(self._before_activation(self._raw(positions), positions))

    def density_and_colors(self, positions: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n c"]]:
        """Extinction per scene unit, and colours in the sense of `colors`."""
        raw = self._raw(positions)
        return self._activate(self._before_activation(raw, positions)), self.colors.activate(raw[:, 1:])

    def density_and_albedo(self, positions: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
        """Extinction per scene unit, and red, green and blue in [0, 1]."""
        density, colors = self.density_and_colors(positions)
        return density, self.colors.to_rgb(colors, torch.ones_like(colors[:, :1]))

    def normals(self, positions: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Unit vectors out of the matter, `-grad density / |grad density|`, differentiable in the parameters.

        It is the density before the activation that is differentiated: the direction is the same, and where the
        activation is nearly flat the numbers are still good.
        """
        if self.config.normals == "analytic":
            gradient = self._analytic_gradient(positions)
        else:
            gradient = self._finite_difference(positions)
        return -F.normalize(gradient, dim=-1, eps=1e-6)

    def _before_activation(self, raw: Float[Tensor, "n d"], positions: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Raw density and blob."""
        squared = positions.square().sum(-1)
        if self.config.blob == "linear":
            blob = 1 - (squared + 1e-8).sqrt() / self.config.blob_radius
        else:
            blob = torch.exp(-squared / (2 * self.config.blob_radius**2))
        return raw[:, 0] + self.config.blob_density * blob

    def _activate(self, raw: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        activated = F.softplus(raw) if self.config.activation == "softplus" else trunc_exp(raw)
        return self.config.density_scale * activated

    def _analytic_gradient(self, positions: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        build_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            positions = positions.detach().requires_grad_()
            values = self._before_activation(self._raw(positions), positions)
            return torch.autograd.grad(values.sum(), positions, create_graph=build_graph)[0]

    def _finite_difference(self, positions: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        eps = self.config.normal_epsilon
        steps = eps * torch.eye(3, device=positions.device)
        around = (positions + torch.stack([steps, -steps])[:, :, None]).reshape(-1, 3)
        plus, minus = self._before_activation(self._raw(around), around).view(2, 3, -1)
        return (plus - minus).T / (2 * eps)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        # nerfstudio falls back to a non-strict load, which would leave a field of another kind at its random start.
        saved = {key: value.shape for key, value in state_dict.items() if key.startswith(prefix)}
        expected = {prefix + key: value.shape for key, value in self.state_dict().items()}
        if saved and saved != expected:  # Nothing saved: nerfstudio visits the field twice, once without its values.
            raise RuntimeError(
                f"The checkpoint's field is not the {type(self).__name__} that is configured: "
                f"{sorted(saved.items() ^ expected.items())[:2]}. Set --pipeline.model.field to what the run was "
                "trained with; a hash field trained with tinycudann only loads where tinycudann is installed."
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


@dataclass
class GridFieldConfig(FieldConfig):
    """A field over dense grids, for CPUs."""

    _target: type = field(default_factory=lambda: GridField)
    resolutions: tuple[int, ...] = (16, 64)
    """Edge lengths of the grids in vertices, coarse to fine."""
    channels: int = 4
    """Features per vertex in each grid."""
    init_scale: float = 0.1
    """Standard deviation of the features at the start."""


class GridField(Field):
    """Features interpolated in dense grids, decoded by a small network."""

    config: GridFieldConfig

    def __init__(self, config: GridFieldConfig) -> None:
        super().__init__(config)
        self.grids = nn.ParameterList(
            Parameter(config.init_scale * torch.randn(1, config.channels, size, size, size))
            for size in config.resolutions
        )
        self.network = MLP(
            in_dim=config.channels * len(config.resolutions),
            num_layers=2,
            layer_width=config.hidden_width,
            out_dim=1 + self.colors.channels,
            implementation="torch",
        )

    def _raw(self, positions: Float[Tensor, "n 3"]) -> Float[Tensor, "n d"]:
        where = positions[None, :, None, None]
        features = [
            F.grid_sample(grid, where, align_corners=True, padding_mode="border")[0, :, :, 0, 0].T
            for grid in self.grids
        ]
        return self.network(torch.cat(features, -1))

    def param_groups(self) -> dict[str, list[Parameter]]:
        return {"encodings": list(self.grids), "networks": list(self.network.parameters())}


@dataclass
class HashFieldConfig(FieldConfig):
    """A field over a hash grid (Mueller et al. 2022, 2201.05989), for GPUs."""

    _target: type = field(default_factory=lambda: HashField)
    implementation: Literal["tcnn", "torch"] = "tcnn"
    """Kernels: tinycudann where it is installed and there is a GPU, else torch; or always torch."""
    num_levels: int = 16
    """Levels of the hash grid."""
    base_resolution: int = 16
    """Edge length of the coarsest level."""
    max_resolution: int = 2048
    """Edge length of the finest level."""
    log2_hashmap_size: int = 19
    """Entries per level, as a power of two."""
    features_per_level: int = 2
    """Features per entry."""


class HashField(Field):
    """Features of a multi-resolution hash grid, decoded by a small network."""

    config: HashFieldConfig

    def __init__(self, config: HashFieldConfig) -> None:
        super().__init__(config)
        fast = config.implementation == "tcnn" and torch.cuda.is_available() and _has_tinycudann()
        implementation = "tcnn" if fast else "torch"
        self.encoding = HashEncoding(
            num_levels=config.num_levels,
            min_res=config.base_resolution,
            max_res=config.max_resolution,
            log2_hashmap_size=config.log2_hashmap_size,
            features_per_level=config.features_per_level,
            implementation=implementation,
        )
        self.network = MLP(
            in_dim=self.encoding.get_out_dim(),
            num_layers=2,
            layer_width=config.hidden_width,
            out_dim=1 + self.colors.channels,
            implementation=implementation,
        )

    def _raw(self, positions: Float[Tensor, "n 3"]) -> Float[Tensor, "n d"]:
        # tinycudann answers in half precision.
        return self.network(self.encoding((positions + 1) / 2)).to(positions)

    def param_groups(self) -> dict[str, list[Parameter]]:
        return {"encodings": list(self.encoding.parameters()), "networks": list(self.network.parameters())}


def _has_tinycudann() -> bool:
    return importlib.util.find_spec("tinycudann") is not None
