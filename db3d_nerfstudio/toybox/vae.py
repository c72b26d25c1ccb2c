"""The codec between pictures and the latents that the guide denoises: an autoencoder of diffusers', made small.

64 x 64 pixels become 16 channels on an 8 x 8 grid. Of diffusers' autoencoders the residual one of DC-AE (Chen et al.
2024, arXiv 2410.10733) costs a CPU least: its coarsest work is done behind a space-to-depth step, where `AutoencoderKL`
convolves full pictures of few channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

if TYPE_CHECKING:
    from diffusers import AutoencoderDC

Network = TypeVar("Network", bound=nn.Module)

CHANNELS = 16
"""Channels of a latent."""
FACTOR = 8
"""Pixels that a latent's cell spans."""


def make_vae() -> AutoencoderDC:
    """Encoder of 0.7 M parameters, decoder of 1.2 M, with random weights."""
    from diffusers import AutoencoderDC

    widths = (16, 32, 64, 128)  # The first is not used: blocks start on the 32 x 32 grid.
    vae = AutoencoderDC(
        latent_channels=CHANNELS,
        encoder_block_out_channels=widths, encoder_layers_per_block=(0, 1, 1, 2), encoder_qkv_multiscales=((),) * 4,
        decoder_block_out_channels=widths, decoder_layers_per_block=(0, 1, 2, 2), decoder_qkv_multiscales=((),) * 4,
        downsample_block_type="pixel_unshuffle", upsample_block_type="pixel_shuffle",
    )  # fmt: skip
    return channels_last(vae)


def channels_last(network: Network, device: str = "cpu") -> Network:
    """The network on `device`, in the memory format in which it convolves fastest.

    `nn.Module.to` with its types, which diffusers' own hides.
    """
    network.to(device)
    return network.to(memory_format=torch.channels_last)


def slopes(x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b c h w2"], Float[Tensor, "b c h2 w"]]:
    """Differences between neighbouring pixels, across and down."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def picture_loss(made: Float[Tensor, "b 3 h w"], true: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    """|d| + 2 d^2 + |slope of d| / 2 over the differences d of pictures in [-1, 1]: exact, and sharp at the edges."""
    difference = made - true
    edges = sum(part.abs().mean() for part in slopes(difference))
    return difference.abs().mean() + 2 * difference.square().mean() + 0.5 * edges


def vae_loss(
    vae: AutoencoderDC, x: Float[Tensor, "b 3 h w"], noise: Float[Tensor, "b c hz wz"], l2: float, scale: float
) -> Float[Tensor, ""]:
    """The codec's loss: pictures from noisy latents, small latents, and small pictures from pooled latents.

    Noise and L2 together are a KL term of fixed variance. Pooled latents that give pooled pictures (Skorokhodov et al.
    2025, arXiv 2502.14831) are smooth latents, which a diffusion model learns sooner.

    Args:
        x: Pictures in [-1, 1].
        noise: Added to the latents.
        l2: Weight of the mean square of the latents.
        scale: Weight of the small pictures, which are computed for a quarter of the batch.
    """
    z = vae.encode(x)[0]
    loss = picture_loss(vae.decode(z + noise)[0], x) + 0.5 * l2 * z.float().square().mean()
    few = max(1, len(x) // 4)
    small = vae.decode(avg_pool2d(z[:few], 2) + noise[:few, :, ::2, ::2])[0]
    return loss + scale * picture_loss(small, avg_pool2d(x[:few], 2))


def psnr(made: Float[Tensor, "b 3 h w"], true: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio of each picture in [-1, 1], dB."""
    return -10 * torch.log10(((made.clamp(-1, 1) - true) / 2).square().mean((1, 2, 3)).clamp(min=1e-9))
