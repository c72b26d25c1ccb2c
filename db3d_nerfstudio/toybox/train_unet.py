"""Train the embedded guide: `python -m db3d_nerfstudio.toybox.train_unet --vae outputs/toybox/vae/vae`.

Photographs and encodes the toys first, then trains UNet and text encoder together. If it is interrupted, the same
command continues from the last checkpoint. Train at a constant rate first, for any time; then run the same command with
`--cooldown-from` and another output. The averaged weights and the codec are in `output/guide`, a folder for
`ToyboxGuideConfig.model`, with a sheet of samples beside it.

    torchrun --nproc-per-node 2 -m db3d_nerfstudio.toybox.train_unet --threads 1

trains with two processes, which is faster than two threads. On a GPU, add `--device cuda --dtype bfloat16 --workers 4`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from db3d_nerfstudio.toybox import network
from db3d_nerfstudio.toybox.course import Course, CourseConfig, run
from db3d_nerfstudio.toybox.dataset import DatasetConfig, make_dataset
from db3d_nerfstudio.toybox.latents import LatentPictures, draw_latents, load_latents, make_latents
from db3d_nerfstudio.toybox.processes import processes
from db3d_nerfstudio.toybox.sheet import sample_sheet
from db3d_nerfstudio.toybox.sides import hints, with_hints
from db3d_nerfstudio.toybox.vae import channels_last

if TYPE_CHECKING:
    from diffusers import AutoencoderDC

ENDS = ("conv_in", "conv_out", "embedding.weight")
"""Layers next to latents and words, which are AdamW's."""


@dataclass
class TrainUnetConfig(CourseConfig):
    """The training recipe of the embedded guide."""

    output: Path = Path("outputs/toybox/unet")
    """Folder of the checkpoint, the log, the finished guide and its sheet of samples."""
    vae: Path = Path("outputs/toybox/vae/vae")
    """Folder of the finished codec."""
    data: DatasetConfig = field(default_factory=lambda: DatasetConfig(num_subjects=32_000, toy_share=0.08,
                                                                      decorated_share=0.25))  # fmt: skip
    """The pictures."""
    timestep_power: float = 2.0
    """The density of the timesteps rises with this power of t: the higher, the more of the training goes to reading
    captions and the less to drawing edges."""
    unconditional: float = 0.1
    """Share of images trained without a caption, for classifier-free guidance."""
    generic: float = 0.05
    """Share of captions with "toy" in place of the class noun."""


def draw_timesteps(num: int, num_timesteps: int, power: float) -> Int[Tensor, " num"]:
    """Timesteps with a density that rises with a power of t; 0 draws them evenly."""
    return (torch.rand(num) ** (1 / (power + 1)) * num_timesteps).long().clamp(max=num_timesteps - 1)


class Learner:
    """UNet and text encoder, and their training step."""

    def __init__(self, config: TrainUnetConfig):
        torch.manual_seed(config.seed)
        self.config = config
        self.unet, self.text_encoder = network.make_unet(), network.make_text_encoder()
        self.tokenizer = network.make_tokenizer()
        self.alphas_cumprod = network.make_scheduler().alphas_cumprod
        self.course = Course(config, nn.ModuleDict({"unet": self.unet, "text_encoder": self.text_encoder}), ENDS)
        self._network = torch.compile(self.unet) if config.compile else self.unet

    def loss(self, z: Float[Tensor, "b c hz wz"], tokens: Int[Tensor, "b n"]) -> Float[Tensor, ""]:
        """Mean squared error of v = sqrt(abar) eps - sqrt(1 - abar) z (Salimans and Ho 2022, arXiv 2202.00512)."""
        t = draw_timesteps(len(z), len(self.alphas_cumprod), self.config.timestep_power)
        abar = self.alphas_cumprod[t][:, None, None, None].to(z.device)
        noise = torch.randn_like(z)
        z_t = abar.sqrt() * z + (1 - abar).sqrt() * noise
        text = self.text_encoder(tokens).last_hidden_state
        inputs = with_hints(z_t, hints(tokens, self.tokenizer))
        half = self.config.dtype == "bfloat16"
        # On sequences of 64 tokens and less, plain products beat a CPU's fused kernel, in bfloat16 by far.
        with torch.autocast(z.device.type, torch.bfloat16, enabled=half), sdpa_kernel(SDPBackend.MATH):
            v = self._network(inputs, t.to(z.device), text).sample.float()
        return (v - (abar.sqrt() * noise - (1 - abar).sqrt() * z)).square().mean()

    def step(self, z: Float[Tensor, "b c hz wz"], tokens: Int[Tensor, "b n"]) -> float:
        """One step on latents and their captions; the loss."""
        rank, num = processes()
        torch.manual_seed((self.config.seed << 32) + self.course.step * num + rank)
        return self.course.move(self.loss(z, tokens))


def photograph_and_encode(config: TrainUnetConfig, vae: AutoencoderDC) -> LatentPictures:
    """The training pictures as latents; the first of several processes makes what is missing."""
    rank, num = processes()
    if rank > 0:
        torch.distributed.barrier()
    paths = make_dataset(config.data)
    latents = make_latents(paths, channels_last(vae, config.device), getattr(torch, config.dtype))
    if num > 1 and rank == 0:
        torch.distributed.barrier()
    return load_latents(paths, latents)


def main(config: TrainUnetConfig) -> None:
    """Photograph, encode, train, sample."""
    from diffusers import AutoencoderDC

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    vae = AutoencoderDC.from_pretrained(config.vae).eval().requires_grad_(False)
    pictures = photograph_and_encode(config, vae)
    learner = Learner(config)

    def publish() -> str:
        network.save_guide(config.output / "guide", learner.unet, learner.text_encoder, vae)
        sample_sheet(config.output / "guide", config.output / "samples.png", device=config.device)
        return "samples.png"

    num = config.batch_size // processes()[1]
    draw = partial(draw_latents, pictures, num, config.unconditional, config.generic)
    run(learner.course, draw, learner.step, publish)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(TrainUnetConfig))
