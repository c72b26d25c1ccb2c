"""What a field's colours are: red, green and blue, or the guide's z (Latent-NeRF, Metzer et al. 2022, 2211.07600).

A field of z is rendered on the grid of the guide's z, and score distillation grades the rendering as it is, with no
encoder between. Everybody else sees red, green and blue. As in Latent-NeRF an affine map makes them of every pixel of z
by itself; theirs is a table for one model, here it is fitted to the guide at hand. It is part of the checkpoint, so
that nobody who looks at a run needs the guide. Light cannot fall on z, whose numbers are no brightness.
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
    """The matrix A that minimises `|[x, 1] A - y|^2`: the smallest, where x leaves a choice."""
    ones = torch.ones_like(x[:, :1])
    return torch.linalg.lstsq(torch.cat([x, ones], -1).double(), y.double(), driver="gelsd").solution.float()


def color_noise(num: int, side: int, generator: torch.Generator | None = None) -> Float[Tensor, "b 3 s s"]:
    """Random images in [0, 1] with the spectrum of photographs, whose amplitudes fall as 1 / frequency."""
    frequency = (torch.fft.fftfreq(side)[:, None].square() + torch.fft.rfftfreq(side).square()).sqrt()
    spectrum = torch.fft.rfft2(torch.randn(num, 3, side, side, generator=generator)) / frequency.clamp_min(1 / side)
    noise = torch.fft.irfft2(spectrum, s=(side, side))
    return (0.5 + 0.25 * noise / noise.std()).clamp(0, 1)


class Colors(nn.Module, abc.ABC):
    """The numbers that a field has in a colour's place: how many, and what they mean to the guide and to the eye."""

    channels: int
    """How many there are."""

    @abc.abstractmethod
    def activate(self, raw: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Colours from what the network says."""

    @abc.abstractmethod
    def to_rgb(self, colors: Float[Tensor, "n c"], accumulation: Float[Tensor, "n 1"]) -> Float[Tensor, "n 3"]:
        """Red, green and blue in [0, accumulation] of what was composited along rays."""

    @abc.abstractmethod
    def from_rgb(self, rgb: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b c"]:
        """What stands for a surface of one colour, such as a background."""

    @abc.abstractmethod
    def encode(self, guide: DiffusionGuide, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d hz wz"]:
        """The guide's z of a rendering, on the guide's device."""

    def fit(self, guide: DiffusionGuide) -> None:  # noqa: B027  (Red, green and blue have nothing to learn.)
        """Learn from the guide what its z looks like; the same for every fine-tune, since none moves the codec."""


class RGB(Colors):
    """Red, green and blue in [0, 1]."""

    channels = 3

    def activate(self, raw: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        return torch.sigmoid(raw)

    def to_rgb(self, colors: Float[Tensor, "n c"], accumulation: Float[Tensor, "n 1"]) -> Float[Tensor, "n 3"]:
        return colors

    def from_rgb(self, rgb: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b c"]:
        return rgb

    def encode(self, guide: DiffusionGuide, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d hz wz"]:
        return guide.encode(image.to(guide.device))


class Latents(Colors):
    """The guide's z, unbounded; to the eye, grey until a guide has been seen."""

    to_rgb_map: Float[Tensor, "c1 3"]
    from_rgb_map: Float[Tensor, "4 c"]
    grid: tuple[int, int] | None = None
    """Height and width of the guide's z, once `fit` has seen a guide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        grey = torch.cat([torch.zeros(channels, 3), torch.full((1, 3), 0.5)])
        self.register_buffer("to_rgb_map", grey)
        self.register_buffer("from_rgb_map", torch.zeros(4, channels))

    def activate(self, raw: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        return raw

    def to_rgb(self, colors: Float[Tensor, "n c"], accumulation: Float[Tensor, "n 1"]) -> Float[Tensor, "n 3"]:
        # The constant term is composited like the rest: it counts as much as there is matter.
        rgb = torch.cat([colors, accumulation], -1) @ self.to_rgb_map
        return torch.minimum(rgb.clamp_min(0), accumulation)

    def from_rgb(self, rgb: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b c"]:
        return torch.cat([rgb, torch.ones_like(rgb[..., :1])], -1) @ self.from_rgb_map

    def encode(self, guide: DiffusionGuide, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d hz wz"]:
        if self.grid is None:
            raise RuntimeError("the colours are a guide's z: call fit(guide) before you distill")
        # As the guide's own encoder does with images, another size is brought to the one that its network knows.
        return F.interpolate(image.to(guide.device), self.grid, mode="bilinear", antialias=True)

    @torch.no_grad()
    def fit(self, guide: DiffusionGuide) -> None:
        """Fits both maps by least squares: the encoder's answers against the mean colours of what they stand for.

        It asks for the eight corners of the colour cube, which alone decide what a plain colour is in z, and for noise.
        These need neither photos nor samples, and a run that resumes finds the same maps again.
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
        self.grid = tuple(z.shape[2:])
        rgb = F.adaptive_avg_pool2d(images, self.grid)
        self.from_rgb_map.copy_(fit_affine(_pixels(rgb[: len(corners)]), _pixels(z[: len(corners)])))
        self.to_rgb_map.copy_(fit_affine(_pixels(z), _pixels(rgb)))


def _pixels(image: Float[Tensor, "b c h w"]) -> Float[Tensor, "n c"]:
    return image.permute(0, 2, 3, 1).flatten(0, 2)
