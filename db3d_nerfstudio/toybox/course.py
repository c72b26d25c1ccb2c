"""A course of training for any network: optimisers, learning rate, averaged weights, checkpoints.

The rate warms up and then stays constant (WSD: Hu et al. 2024, arXiv 2404.06395), so that the length of a run need not
be fixed in advance: raise `num_images` and it continues. Good weights come from a cooldown, a separate run that starts
from a checkpoint of the first (`cooldown_from`) and leaves the first as it is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import Parameter

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.toybox.muon import Muon
from db3d_nerfstudio.toybox.processes import average_gradients, processes

CHECKPOINT = "checkpoint.pt"
WARM_UP = 100
"""Steps over which the rate rises."""


@dataclass
class CourseConfig:
    """How to train any network."""

    output: Path
    """Folder of the checkpoint, the log and the finished weights."""
    num_images: int = 1_000_000
    """Number of images in all, repeats included; raise it to continue a finished run."""
    batch_size: int = 256
    """Images per step, divided between the processes if there are several."""
    learning_rate: float = 1e-3
    """AdamW's rate, after 100 steps of warm-up."""
    matrix_learning_rate: float = 1e-2
    """Muon's rate. Muon trains the weights of inner layers, AdamW the rest."""
    cooldown_from: Path | None = None
    """Folder of a run whose last checkpoint to start from, with a rate that falls linearly to zero."""
    cooldown_images: int = 60_000
    """Number of images of a cooldown, which ignores `num_images`."""
    ema_decay: float = 0.999
    """Highest decay of the averaged weights; in the first 10,000 steps it is lower."""
    minutes_per_checkpoint: float = 5.0
    """Minutes between checkpoints."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device to train on."""
    threads: int | None = None
    """CPU threads; by default torch's choice."""
    workers: int = 0
    """Number of processes that prepare batches; 0 prepares them in the training process."""
    compile: bool = False
    """Compile the network: takes some minutes, and needs a C++ compiler on a CPU."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the activations; the weights stay float32. On a CPU with AVX512-BF16 (`lscpu`), bfloat16 is almost
    twice as fast; on any other CPU it is several times slower."""
    seed: int = 0
    """Seed of the initial weights and of all random draws."""


def rate_at(step: int, cooldown: tuple[int, int] | None) -> float:
    """The share of the peak rate: a rising line, then constant; in a cooldown (first step, steps) a falling line."""
    rate = min(1.0, (step + 1) / WARM_UP)
    if cooldown is None:
        return rate
    first, steps = cooldown
    return rate * max(0.0, 1 - (step - first) / steps)


def split_parameters(module: nn.Module, ends: tuple[str, ...]) -> tuple[list[Parameter], list[Parameter]]:
    """The weights of inner layers, which Muon trains, and all others, which AdamW trains.

    Args:
        ends: Parts of the names of the layers at the network's two ends.
    """
    named = dict(module.named_parameters())
    inner = [name for name, weight in named.items() if weight.ndim >= 2 and not any(end in name for end in ends)]
    return [named[name] for name in inner], [weight for name, weight in named.items() if name not in inner]


class Course:
    """Networks in training, their averaged weights and their step."""

    def __init__(self, config: CourseConfig, modules: nn.ModuleDict, ends: tuple[str, ...]):
        from diffusers.training_utils import EMAModel

        config.output.mkdir(parents=True, exist_ok=True)
        self.config, self.modules, self.step = config, modules.to(config.device), 0
        inner, other = split_parameters(self.modules, ends)
        self.optimizers = {
            "inner": Muon(inner, config.matrix_learning_rate, dtype=getattr(torch, config.dtype)),
            "other": torch.optim.AdamW(other, config.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True),
        }
        self._peaks = {name: optimizer.param_groups[0]["lr"] for name, optimizer in self.optimizers.items()}
        average = {"decay": config.ema_decay, "use_ema_warmup": True, "power": 3 / 4, "foreach": True}
        self.ema = EMAModel(self.modules.parameters(), **average)
        self._cooldown: tuple[int, int] | None = None
        self._resume()

    def _resume(self) -> None:
        config, own = self.config, self.config.output / CHECKPOINT
        if own.exists():
            self._load(own)
        elif config.cooldown_from is not None:
            if not (config.cooldown_from / CHECKPOINT).exists():
                raise UserError(
                    f"{config.cooldown_from} has no {CHECKPOINT} to start from: give the --output of a run."
                )
            self._load(config.cooldown_from / CHECKPOINT)
            self._cooldown = (self.step, config.cooldown_images // config.batch_size)
        if (self._cooldown is None) != (config.cooldown_from is None):
            raise UserError(f"{config.output} belongs to another run: give the cooldown another --output.")

    @property
    def last_step(self) -> int:
        """Number of steps of the run."""
        if self._cooldown is not None:
            return sum(self._cooldown)
        return self.config.num_images // self.config.batch_size

    @property
    def images(self) -> int:
        """Number of images so far."""
        return self.step * self.config.batch_size

    def move(self, loss: Float[Tensor, ""]) -> float:
        """One step down the gradient of the loss, and the loss."""
        if not loss.isfinite():
            raise FloatingPointError(f"The loss of step {self.step} is {loss}: lower the learning rates.")
        self.modules.zero_grad()
        loss.backward()
        average_gradients(self.modules)
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        rate = rate_at(self.step, self._cooldown)
        for name, optimizer in self.optimizers.items():
            optimizer.param_groups[0]["lr"] = rate * self._peaks[name]
            optimizer.step()
        self.ema.step(self.modules.parameters())
        self.step += 1
        return loss.item()

    @contextmanager
    def average(self) -> Iterator[None]:
        """Use the averaged weights in place of the weights, within a `with` block."""
        self.ema.store(self.modules.parameters())
        self.ema.copy_to(self.modules.parameters())
        yield
        self.ema.restore(self.modules.parameters())

    def save(self) -> None:
        """Write the checkpoint; it appears whole or not at all."""
        state = {
            "modules": self.modules.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "ema": self.ema.state_dict(),
            "step": self.step,
            "cooldown": self._cooldown,
        }
        path = self.config.output / CHECKPOINT
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def _load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True, map_location=self.config.device)
        self.modules.load_state_dict(state["modules"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.ema.load_state_dict(state["ema"])
        self.ema.to(self.config.device)
        self.step, self._cooldown = state["step"], state["cooldown"]


class Batches(torch.utils.data.Dataset):
    """The batch of every step, a function of seed and step alone, prepared here or in another process."""

    def __init__(self, draw: Callable, seed: int):
        """Args: `draw()` draws a batch with torch's generator."""
        self._draw, self._seed = draw, seed
        self._rank, self._num = processes()

    def __getitem__(self, step: int):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self._seed << 32) + step * self._num + self._rank)
            return self._draw()

    def loader(self, steps: range, workers: int, pin: bool) -> torch.utils.data.DataLoader:
        """Batches of these steps, in their order, some of them prepared ahead."""
        # Forked, because the data are too large to be copied into each process.
        return torch.utils.data.DataLoader(
            self, batch_size=None, sampler=steps, num_workers=workers, pin_memory=pin,
            multiprocessing_context="fork" if workers else None,
        )  # fmt: skip


def run(course: Course, draw: Callable, step: Callable[..., float], publish: Callable[[], str]) -> None:
    """Train to the last step, with a log, checkpoints, and what `publish` makes of the averaged weights.

    Args:
        draw: Draws a batch, a tuple of tensors, with torch's generator.
        step: Trains on a batch and returns the loss.
        publish: Writes the finished weights, and returns measures of their quality.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    config, (rank, _) = course.config, processes()
    steps = range(course.step, course.last_step)
    batches = Batches(draw, config.seed).loader(steps, config.workers, pin=config.device == "cuda")
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}"), TimeRemainingColumn()
    start, last_save, losses = (time.monotonic(), course.images), time.monotonic(), []
    with Progress(*columns, disable=rank > 0) as progress, open(config.output / "log.txt", "a") as log:
        task = progress.add_task("Training", total=course.last_step, completed=course.step, status="")
        for batch in batches:
            losses.append(step(*(part.to(config.device, non_blocking=True) for part in batch)))
            if rank > 0:
                continue
            ended = course.step == course.last_step
            if course.step % 20 == 0 or ended:
                speed = (course.images - start[1]) / (time.monotonic() - start[0])
                status = f"{course.images} images, loss {sum(losses) / len(losses):.4f}, {speed:.1f} img/s"
                progress.update(task, completed=course.step, status=status)
                log.write(f"{time.strftime('%H:%M:%S')} {status}\n")
                log.flush()
                losses.clear()
            if ended or time.monotonic() - last_save > 60 * config.minutes_per_checkpoint:
                course.save()
                with course.average(), torch.no_grad():
                    log.write(f"{time.strftime('%H:%M:%S')} {course.images} images: {publish()}\n")
                log.flush()
                last_save = time.monotonic()
