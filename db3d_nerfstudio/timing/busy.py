"""A training step beside programs that keep cores busy: `python -m db3d_nerfstudio.timing.busy --loops 1`.

Compares all threads, one thread, and the number that `threads.FreeThreads` chooses. The last is to lose no more than
what the loops take. How OpenMP's threads wait is fixed when torch loads: put OMP_WAIT_POLICY=PASSIVE before the command
to compare that too.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import tyro

from db3d_nerfstudio.ranges import Count, Positive
from db3d_nerfstudio.threads import FreeThreads

Step = Callable[[], object]


@dataclass
class Busy:
    """Time the training step of `dreambooth3d-toybox` beside busy loops."""

    loops: Count = 1
    """Programs that compute without end, on a core each."""
    seconds: Positive = 10.0
    """Length of each measurement."""
    resolution: Count = 64
    """Edge of the random views, pixels."""

    def main(self) -> None:
        """Run and print."""
        step = training_step(self.resolution)
        step()
        policy = os.environ.get("OMP_WAIT_POLICY", "not set")
        print(f"Steps per second of the clock, beside {self.loops} busy loops; OMP_WAIT_POLICY is {policy}")
        print("threads".ljust(16), *(title.rjust(10) for title in ("alone", "beside", "kept")), sep="")
        for name, choose in choices(torch.get_num_threads()).items():
            alone, beside = (self._rate(step, choose, loops) for loops in (0, self.loops))
            print(name.ljust(16), f"{alone:10.2f}", f"{beside:10.2f}", f"{beside / alone:10.0%}", sep="", flush=True)

    def _rate(self, step: Step, choose: Callable[[], object], loops: int) -> float:
        with busy_loops(loops):
            choose()
            return rate(step, self.seconds)


def choices(most: int) -> dict[str, Callable[[], object]]:
    """Ways to set the number of threads."""
    return {
        f"all, {most}": lambda: torch.set_num_threads(most),
        "one": lambda: torch.set_num_threads(1),
        "as many as free": lambda: _choose_free(most),
    }


def _choose_free(most: int) -> None:
    torch.set_num_threads(most)
    FreeThreads().begin()


def rate(step: Step, seconds: float) -> float:
    """Steps per second of the clock, over so many seconds."""
    start, steps = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        step()
        steps += 1
    return steps / (time.perf_counter() - start)


@contextmanager
def busy_loops(num: int) -> Iterator[None]:
    """Programs that compute without end, within a `with` block."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def training_step(resolution: int) -> Step:
    """A step of the NeRF with the embedded guide, late in a phase."""
    from db3d_nerfstudio.cameras import image_rays
    from db3d_nerfstudio.nerf.model import DreamBooth3DModelConfig
    from db3d_nerfstudio.timing.step import BOX
    from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig
    from db3d_nerfstudio.training.optimizers import FusedAdamConfig
    from db3d_nerfstudio.training.random_cameras import RandomCamerasConfig, random_cameras

    config = DreamBooth3DModelConfig(prompt="a photo of a red chair", guide=ToyboxGuideConfig())
    model = config.setup(scene_box=BOX, num_train_data=1)
    model.distillation.embed_prompts()
    model.set_progress(1.0)
    optimizer = FusedAdamConfig(lr=0.01, eps=1e-15).setup(params=model.field.parameters())

    def step() -> None:
        cameras, views = random_cameras(RandomCamerasConfig(), 1, resolution)
        losses = model.get_loss_dict(
            model(image_rays(cameras)), {"views": views, "image_shape": (1, resolution, resolution)}
        )
        optimizer.zero_grad()
        torch.stack([*losses.values()]).sum().backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    tyro.cli(Busy).main()
