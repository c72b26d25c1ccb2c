"""The colours of a field: red, green and blue, or the guide's z (Latent-NeRF, Metzer et al. 2022, 2211.07600).

A field of z is rendered on the grid of the guide's z, and score distillation uses the rendering without an encoder. For
everything else, an affine map turns each pixel of z into red, green and blue, as in Latent-NeRF, which has a table for
one model; here the map is fitted to the guide. It is part of the checkpoint, so that looking at a run needs no guide. z
cannot be shaded: its values are not intensities.
"""

import abc

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.base import DiffusionGuide

__all__ = ["RGB", "Colors", "Latents", "color_noise", "fit_affine"]

NUM_IMAGES = 8
"""Images of noise that the map from z to colours is fitted to, beside those of one colour."""


def fit_affine(x: Float[Tensor, "n c"], y: Float[Tensor, "n d"]) -> Float[Tensor, "c1 d"]:
    """The matrix A that minimises `|[x, 1] A - y|^2`, of least norm if there are several."""
    ones = torch.ones_like(x[:, :1])
    return torch.linalg.lstsq(torch.cat([x, ones], -1).double(), y.double(), driver="gelsd").solution.float()


def color_noise(num: int, side: int, generator: torch.Generator | None = None) -> Float[Tensor, "b 3 s s"]:
    """Random images in [0, 1] with the spectrum of photographs, whose amplitudes fall as 1 / frequency."""
    frequency = (torch.fft.fftfreq(side)[:, None].square() + torch.fft.rfftfreq(side).square()).sqrt()
    spectrum = torch.fft.rfft2(torch.randn(num, 3, side, side, generator=generator)) / frequency.clamp_min(1 / side)
    noise = torch.fft.irfft2(spectrum, s=(side, side))
    return (0.5 + 0.25 * noise / noise.std()).clamp(0, 1)


class Colors(nn.Module, abc.ABC):
    """The colour space of a field, and its maps to the guide's z and to red, green and blue."""

    channels: int
    """Number of channels."""

    @abc.abstractmethod
    def activate(self, raw: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
        """Colours from the network's output."""

    @abc.abstractmethod
    def to_rgb(self, colors: Float[Tensor, "n c"], accumulation: Float[Tensor, "n 1"]) -> Float[Tensor, "n 3"]:
        """Red, green and blue in [0, accumulation] of composited colours."""

    @abc.abstractmethod
    def from_rgb(self, rgb: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b c"]:
        """The colours of a surface of one red, green and blue, such as a background."""

    @abc.abstractmethod
    def encode(self, guide: DiffusionGuide, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d hz wz"]:
        """The guide's z of a rendering, on the guide's device."""

    def fit(self, guide: DiffusionGuide) -> None:  # noqa: B027  (Red, green and blue have nothing to learn.)
        """Fit the maps to the guide's codec, which no fine-tune changes."""


class RGB(Colors):
    """Red, green and blue in [0, 1]."""

    channels = 3

    def activate(self, raw: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
        return torch.sigmoid(raw)

    def to_rgb(self, colors: Float[Tensor, "n c"], accumulation: Float[Tensor, "n 1"]) -> Float[Tensor, "n 3"]:
        return colors

    def from_rgb(self, rgb: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b c"]:
        return rgb

    def encode(self, guide: DiffusionGuide, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d hz wz"]:
        return guide.encode(image.to(guide.device))


class Latents(Colors):
    """The guide's z, unbounded; shown as grey until `fit` was called."""

    to_rgb_map: Float[Tensor, "c1 3"]
    from_rgb_map: Float[Tensor, "4 c"]
    grid: tuple[int, int] | None = None
    """Height and width of the guide's z, set by `fit`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        grey = torch.cat([torch.zeros(channels, 3), torch.full((1, 3), 0.5)])
        self.register_buffer("to_rgb_map", grey)
        self.register_buffer("from_rgb_map", torch.zeros(4, channels))

    def activate(self, raw: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
        return raw

    def to_rgb(self, colors: Float[Tensor, "n c"], accumulation: Float[Tensor, "n 1"]) -> Float[Tensor, "n 3"]:
        # The constant term is composited like the rest, weighted by the accumulation.
        rgb = torch.cat([colors, accumulation], -1) @ self.to_rgb_map
        return torch.minimum(rgb.clamp_min(0), accumulation)

    def from_rgb(self, rgb: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b c"]:
        return torch.cat([rgb, torch.ones_like(rgb[..., :1])], -1) @ self.from_rgb_map

    def encode(self, guide: DiffusionGuide, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d hz wz"]:
        if self.grid is None:
            raise RuntimeError("the colours are a guide's z: call fit(guide) before you distill")
        # Resize to the grid that the guide's network was trained on, as its encoder does with images.
        return F.interpolate(image.to(guide.device), self.grid, mode="bilinear", antialias=True)

    @torch.no_grad()
    def fit(self, guide: DiffusionGuide) -> None:
        """Fit both maps by least squares: z of images by the guide's encoder against their mean colours.

        The images are the eight corners of the colour cube, which alone decide the z of a plain colour, and noise. They
        need neither photos nor samples, and a resumed run gets the same maps.
        """
        corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)[:, :, None, None]
        noise = color_noise(NUM_IMAGES, guide.resolution, torch.Generator().manual_seed(0))
        images = torch.cat([corners.expand(-1, -1, *noise.shape[2:]), noise])
        z = torch.cat([guide.encode(image[None].to(guide.device)).cpu() for image in images])
        if z.shape[1] != self.channels:
            raise UserError(
                f"the guide's z has {z.shape[1]} channels and the field's colours {self.channels}: "
                f"set --pipeline.model.field.latent-channels {z.shape[1]}"
            )
        height, width = z.shape[2:]
        self.grid = (height, width)
        rgb = F.adaptive_avg_pool2d(images, self.grid)
        self.from_rgb_map.copy_(fit_affine(_pixels(rgb[: len(corners)]), _pixels(z[: len(corners)])))
        self.to_rgb_map.copy_(fit_affine(_pixels(z), _pixels(rgb)))


def _pixels(image: Float[Tensor, "b c h w"]) -> Float[Tensor, "n c"]:
    return image.permute(0, 2, 3, 1).flatten(0, 2)
