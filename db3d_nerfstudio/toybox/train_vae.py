"""Train the codec of the embedded guide: `python -m db3d_nerfstudio.toybox.train_vae`.

If it is interrupted, the same command continues from the last checkpoint. Train at a constant rate first; then run the
same command with `--cooldown-from` and another output. The averaged weights are in `output/vae`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor, nn

from db3d_nerfstudio.toybox import vae
from db3d_nerfstudio.toybox.course import Course, CourseConfig, run
from db3d_nerfstudio.toybox.dataset import DatasetConfig, load_images, make_dataset
from db3d_nerfstudio.toybox.processes import processes
from db3d_nerfstudio.toybox.train_judge import FIRST_HELD_OUT_SEED

if TYPE_CHECKING:
    from diffusers import AutoencoderDC

ENDS = ("encoder.conv_in", "decoder.conv_out")
"""Layers next to the pixels, which are AdamW's."""


@dataclass
class TrainVaeConfig(CourseConfig):
    """The training recipe of the codec."""

    output: Path = Path("outputs/toybox/vae")
    """Folder of the checkpoint, the log and the finished codec."""
    data: DatasetConfig = field(default_factory=DatasetConfig)
    """The pictures."""
    held_out: DatasetConfig = field(default_factory=lambda: DatasetConfig(num_subjects=128, subjects_per_shard=128,
                                                                          first_seed=FIRST_HELD_OUT_SEED))  # fmt: skip
    """Pictures of unseen toys, on which the codec is measured."""
    start_from: Path | None = None
    """Folder of a finished codec to start from; by default random weights."""
    decoder_only: bool = False
    """Freeze the encoder, so that a guide trained on its latents remains valid."""
    batch_size: int = 32
    """Images per step, divided between the processes if there are several."""
    learning_rate: float = 2e-3
    """AdamW's rate, after 100 steps of warm-up."""
    noise: float = 0.3
    """Standard deviation of the noise that training adds to the latents."""
    l2: float = 3e-3
    """Weight of the latents' mean square; larger weights give smaller and smoother latents."""
    scale: float = 0.25
    """Weight of small pictures from pooled latents."""


def to_pictures(images: UInt8[ndarray, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    """Bytes as pictures in [-1, 1]."""
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pictures.contiguous(memory_format=torch.channels_last)


def draw_pictures(images: UInt8[ndarray, "n h w 3"], num: int) -> tuple[Float[Tensor, "b 3 h w"]]:
    """Random pictures, half of them mirrored."""
    chosen = images[torch.randint(len(images), (num,)).numpy()]
    mirrored = torch.rand(num).numpy() < 0.5
    chosen[mirrored] = chosen[mirrored][:, :, ::-1]
    return (to_pictures(chosen),)


@torch.no_grad()
def quality(codec: AutoencoderDC, images: UInt8[ndarray, "n h w 3"], device: str = "cpu") -> dict[str, float]:
    """Mean PSNR (dB) of pictures through the codec, and the standard deviation of their latents."""
    ratios, latents = [], []
    for part in np.array_split(images, -(-len(images) // 64)):
        x = to_pictures(part).to(device)
        latents.append(codec.encode(x)[0])
        ratios.append(vae.psnr(codec.decode(latents[-1])[0], x))
    return {"psnr": torch.cat(ratios).mean().item(), "std": torch.cat(latents).std().item()}


def make_codec(config: TrainVaeConfig) -> AutoencoderDC:
    """The codec to start training from."""
    from diffusers import AutoencoderDC

    codec = vae.make_vae() if config.start_from is None else AutoencoderDC.from_pretrained(config.start_from)
    codec.encoder.requires_grad_(not config.decoder_only)
    return vae.channels_last(codec)


def main(config: TrainVaeConfig) -> None:
    """Photograph what is missing, train, and measure on unseen toys."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    images = load_images(make_dataset(config.data))
    unseen = load_images(make_dataset(config.held_out))
    codec = make_codec(config)
    course = Course(config, nn.ModuleDict({"vae": codec}), ENDS)
    loss_of = torch.compile(vae.vae_loss) if config.compile else vae.vae_loss

    def step(x: Float[Tensor, "b 3 h w"]) -> float:
        torch.manual_seed((config.seed << 32) + course.step * processes()[1] + processes()[0])
        cell = vae.FACTOR
        noise = config.noise * torch.randn(len(x), vae.CHANNELS, x.shape[2] // cell, x.shape[3] // cell)
        half = config.dtype == "bfloat16"
        with torch.autocast(config.device, torch.bfloat16, enabled=half):
            loss = loss_of(codec, x, noise.to(x), config.l2, config.scale)
        return course.move(loss)

    def publish() -> str:
        result = quality(codec, unseen, config.device)
        if not config.decoder_only:
            codec.register_to_config(scaling_factor=1 / result["std"])
        codec.save_pretrained(config.output / "vae")
        return f"PSNR {result['psnr']:.2f} dB, std {result['std']:.3f} of {len(unseen)} pictures of toys never seen"

    run(course, lambda: draw_pictures(images, config.batch_size // processes()[1]), step, publish)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(TrainVaeConfig))
