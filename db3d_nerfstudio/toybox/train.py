"""Train the embedded guide: `python -m db3d_nerfstudio.toybox.train`.

Photographs the toys first, then trains UNet and text encoder together from scratch. If it is interrupted, the same
command continues from the last checkpoint. The averaged weights (EMA) are written to `output/guide`, a folder for
`ToyboxGuideConfig.model`, with a sheet of samples beside it.

    torchrun --nproc-per-node 2 -m db3d_nerfstudio.toybox.train --threads 1

trains with two processes, which is faster than two threads.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Parameter

from db3d_nerfstudio.toybox import network
from db3d_nerfstudio.toybox.batches import draw_batch, drop_captions, say_toy, tokenize
from db3d_nerfstudio.toybox.dataset import DatasetConfig, load_dataset, make_dataset
from db3d_nerfstudio.toybox.muon import Muon
from db3d_nerfstudio.toybox.processes import average_gradients, processes
from db3d_nerfstudio.toybox.sides import side, with_side
from db3d_nerfstudio.toybox.vae import channels_last

SHEET_PROMPTS = ("a photo of a red car", "a photo of a yellow duck", "a photo of a brown dog with white ears",
                 "a photo of a blue robot", "a photo of a striped green mug", "a photo of a pink chair")  # fmt: skip


@dataclass
class TrainConfig:
    """The training recipe of the embedded guide."""

    output: Path = Path("outputs/toybox")
    """Folder of the checkpoint, the finished guide and the sample sheets."""
    data: DatasetConfig = field(default_factory=DatasetConfig)
    """The pictures."""
    start_from: Path | None = None
    """Folder of a finished guide to start from; by default random weights."""
    num_images: int = 1_000_000
    """Number of images in all, repeats included."""
    batch_size: int = 32
    """Images per step, divided between the processes if there are several."""
    learning_rate: float = 1e-3
    """Peak of AdamW's rate: reached after 100 steps, falls to 2 % over the last `cooldown` of the training."""
    matrix_learning_rate: float = 1e-2
    """Peak of Muon's rate. Muon trains the weights of inner layers, AdamW the rest."""
    cooldown: float = 0.4
    """Share of the training over which the rate falls."""
    timestep_power: float = 4.0
    """The density of the timesteps rises with this power of t: the higher, the more of the training goes to reading
    captions and the less to drawing edges."""
    max_weight: float = 5.0
    """Bound on the weight 1 / (1 - alpha_bar) of an image in the loss."""
    unconditional: float = 0.1
    """Share of images trained without a caption, for classifier-free guidance."""
    generic: float = 0.05
    """Share of captions with "toy" in place of the class noun, a name for subjects of other classes."""
    ema_decay: float = 0.999
    """Highest decay of the averaged weights."""
    minutes_per_checkpoint: float = 4.0
    """Minutes between checkpoints."""
    threads: int | None = None
    """CPU threads; by default torch's choice."""
    compile: bool = False
    """Compile the UNet: needs a C++ compiler and some minutes, then trains about a third faster."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the activations; the weights stay float32. On a CPU with AVX512-BF16 (`lscpu`), bfloat16 is almost
    twice as fast; on any other it is several times slower."""
    seed: int = 0
    """Seed of the initial weights and of all random draws."""


def rate_at(progress: float, step: int, cooldown: float) -> float:
    """The share of the peak learning rate: linear warm-up, constant, linear fall."""
    return min(1.0, (step + 1) / 100) * max(0.02, min(1.0, (1 - progress) / cooldown))


def split_parameters(module: torch.nn.Module) -> tuple[list[Parameter], list[Parameter]]:
    """The weights of inner layers, which Muon trains, and all other parameters, which AdamW trains."""
    named = dict(module.named_parameters())
    ends = ("conv_in", "conv_out", "embedding.weight")
    inner = [name for name, weight in named.items() if weight.ndim >= 2 and not any(end in name for end in ends)]
    return [named[name] for name in inner], [weight for name, weight in named.items() if name not in inner]


def draw_timesteps(num: int, num_timesteps: int, power: float) -> Int[Tensor, " num"]:
    """Timesteps with a density that rises with a power of t; 0 draws them evenly.

    Areas of one colour show through all but the highest noise of a 64 x 64 picture. Only at that noise must the network
    read class and side from the caption; edges are drawn at low t.
    """
    return (torch.rand(num) ** (1 / (power + 1)) * num_timesteps).long().clamp(max=num_timesteps - 1)


class Trainer:
    """The model in training, its averaged weights and its step."""

    def __init__(self, config: TrainConfig):
        from diffusers.training_utils import EMAModel

        config.output.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed)
        self.config, self.step = config, 0
        if config.start_from is None:
            self.unet, self.text_encoder = network.make_unet(), network.make_text_encoder()
        else:
            self.unet, self.text_encoder = read_guide(config.start_from)
        self.alphas_cumprod = network.make_scheduler().alphas_cumprod
        self._network = torch.compile(self.unet) if config.compile else self.unet
        self.modules = torch.nn.ModuleDict({"unet": self.unet, "text_encoder": self.text_encoder})
        inner, other = split_parameters(self.modules)
        self.optimizers = {
            "inner": Muon(inner, config.matrix_learning_rate, dtype=getattr(torch, config.dtype)),
            "other": torch.optim.AdamW(other, config.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True),
        }
        self._peaks = {name: optimizer.param_groups[0]["lr"] for name, optimizer in self.optimizers.items()}
        self.ema = EMAModel(self.modules.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=3 / 4)
        self._checkpoint = config.output / "checkpoint.pt"
        if self._checkpoint.exists():
            self._load()

    @property
    def num_steps(self) -> int:
        return self.config.num_images // self.config.batch_size

    def train_step(self, images: Float[Tensor, "b 3 h w"], tokens: Int[Tensor, "b n"]) -> float:
        """One step on images in [-1, 1] and their captions; the weighted loss of the clean image."""
        z = torch.nn.functional.pixel_unshuffle(images, network.PATCH).contiguous(memory_format=torch.channels_last)
        noise = torch.randn_like(z)
        t = draw_timesteps(len(z), len(self.alphas_cumprod), self.config.timestep_power)
        abar = self.alphas_cumprod[t][:, None, None, None]
        z_t = abar.sqrt() * z + (1 - abar).sqrt() * noise
        weight = (1 / (1 - abar)).clamp(max=self.config.max_weight)
        text = self.text_encoder(tokens).last_hidden_state
        inputs = with_side(z_t, side(tokens, network.make_tokenizer()))
        loss = (weight * (self._predict(inputs, t, text) - z).square()).mean()
        if not loss.isfinite():
            raise FloatingPointError(f"The loss of step {self.step} is {loss}: lower --learning-rate.")
        self.modules.zero_grad()
        loss.backward()
        average_gradients(self.modules)
        torch.nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        rate = rate_at(self.step / self.num_steps, self.step, self.config.cooldown)
        for name, optimizer in self.optimizers.items():
            optimizer.param_groups[0]["lr"] = rate * self._peaks[name]
            optimizer.step()
        self.ema.step(self.modules.parameters())
        self.step += 1
        return loss.item()

    def _predict(
        self, inputs: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], text: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b c2 h w"]:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        half = self.config.dtype == "bfloat16"
        # On sequences of 64 tokens and less, plain products beat the fused kernel, in bfloat16 by far.
        with torch.autocast("cpu", torch.bfloat16, enabled=half), sdpa_kernel(SDPBackend.MATH):
            return self._network(inputs, t, text).sample.float()

    def save(self) -> None:
        """Write the training state, then the averaged guide; each appears whole or not at all."""
        optimizers = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        state = {"modules": self.modules.state_dict(), "optimizers": optimizers,
                 "ema": self.ema.state_dict(), "step": self.step}  # fmt: skip
        temporary = self._checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self._checkpoint)
        self.ema.store(self.modules.parameters())
        self.ema.copy_to(self.modules.parameters())
        network.save_guide(self.config.output / "guide", self.unet, self.text_encoder)
        self.ema.restore(self.modules.parameters())

    def _load(self) -> None:
        state = torch.load(self._checkpoint, weights_only=True)
        self.modules.load_state_dict(state["modules"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.ema.load_state_dict(state["ema"])
        self.step = state["step"]


def read_guide(folder: Path):
    """UNet and text encoder of a saved guide."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    full = torch.float32  # Released weights are float16.
    unet = channels_last(UNet2DConditionModel.from_pretrained(folder / "unet", dtype=full))
    text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=full)
    text_encoder.resize_token_embeddings(len(network.make_tokenizer()))  # Words may have been added since.
    return unet, text_encoder


def sample_sheet(guide_folder: Path, path: Path, seed: int = 0, device: str = "cpu") -> None:
    """Samples of a few prompts (rows) from the four views (columns)."""
    from torchvision.utils import save_image

    from db3d_nerfstudio.diffusion.sampling import SamplingConfig, draw
    from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig
    from db3d_nerfstudio.words import view_prompts

    guide = ToyboxGuideConfig(model=guide_folder).setup(device=device)
    prompts = [text for prompt in SHEET_PROMPTS for text in view_prompts(prompt).values()]
    save_image(draw(guide, prompts, SamplingConfig(15, 4.0), seed), path, nrow=4, padding=0)


def main(config: TrainConfig) -> None:
    """Photograph, train, sample."""
    import time

    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    rank, num = processes()
    if rank > 0:
        torch.distributed.barrier()  # The first one photographs.
    paths = make_dataset(config.data)
    if num > 1 and rank == 0:
        torch.distributed.barrier()
    pictures = load_dataset(paths)
    tokens = tokenize(pictures)
    empty = network.make_tokenizer()("", padding="max_length", return_tensors="pt").input_ids[0]
    trainer = Trainer(config)
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}"), TimeRemainingColumn()
    last_save, losses = time.monotonic(), []
    with Progress(*columns, disable=rank > 0) as progress, open(config.output / "log.txt", "a") as log:
        task = progress.add_task("Training the guide", total=trainer.num_steps, completed=trainer.step, status="")
        while trainer.step < trainer.num_steps:
            # A resumed run draws what the unbroken one would.
            torch.manual_seed((config.seed << 32) + trainer.step * num + rank)
            images, captions, _ = draw_batch(pictures, tokens, config.batch_size // num)
            captions = drop_captions(say_toy(captions, config.generic), empty, config.unconditional)
            loss = trainer.train_step(images, captions)
            if rank > 0:
                continue
            losses.append(loss)
            if trainer.step % 100 == 0:
                status = f"{trainer.step * config.batch_size / 1000:.0f}k images, loss {sum(losses) / len(losses):.4f}"
                progress.update(task, completed=trainer.step, status=status)
                log.write(f"{time.strftime('%H:%M:%S')} {status}\n")
                log.flush()
                losses.clear()
            if time.monotonic() - last_save > 60 * config.minutes_per_checkpoint or trainer.step == trainer.num_steps:
                trainer.save()
                sample_sheet(config.output / "guide", config.output / "samples.png")
                last_save = time.monotonic()
    if rank == 0:
        print(f"The guide is in {config.output / 'guide'}; look at {config.output / 'samples.png'}.")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(TrainConfig))
