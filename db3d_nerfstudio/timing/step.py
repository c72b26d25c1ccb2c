"""Where a training step's time goes: `python -m db3d_nerfstudio.timing.step --steps 20 --resolution 64`.

Prints the time of rendering, guide, backward pass and optimizer, early and late in a phase, and with `--generfacto`
also that of nerfstudio's generfacto with an empty guide. On a CPU, times are CPU time of the process, so that other
programs on the machine disturb them little.
"""

import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import tyro
from nerfstudio.data.scene_box import SceneBox
from torch import Tensor

from db3d_nerfstudio.cameras import image_rays
from db3d_nerfstudio.nerf.model import DreamBooth3DModel, DreamBooth3DModelConfig
from db3d_nerfstudio.timing.diffusion import time_stable_diffusion
from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig
from db3d_nerfstudio.training.optimizers import FusedAdamConfig
from db3d_nerfstudio.training.random_cameras import RandomCamerasConfig, random_cameras, resolution_at

PARTS = ("render", "guide", "backward", "optimizer", "total")
BOX = SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3]))


@dataclass
class Benchmark:
    """Time the training step of `dreambooth3d-toybox`, and of generfacto."""

    prompt: str = "a photo of a red chair"
    """Prompt to distil."""
    guide: Path | None = None
    """Folder of a toybox guide; by default the one in the package."""
    steps: int = 300
    """Length of the miniature phase to time."""
    report_every: int = 100
    """Steps per printed line."""
    resolution: int = 64
    """Edge of the random views, pixels."""
    generfacto: bool = False
    """Also time generfacto's step with an empty guide: about 15 s each on a CPU."""
    generfacto_steps: int = 2
    """Steps of generfacto, after one to warm up."""
    stable_diffusion: bool = False
    """Time a guide of Stable Diffusion 1.5's size with random weights instead."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to run."""
    threads: int = 0
    """CPU threads; 0 is torch's default."""

    def main(self) -> None:
        """Runs and prints."""
        warnings.simplefilter("ignore")
        if self.threads:
            torch.set_num_threads(self.threads)
        if self.stable_diffusion:
            return time_stable_diffusion(self.device)
        print("ms per step".ljust(24), *(part.rjust(10) for part in PARTS), "  samples", sep="")
        self._ours()
        if self.generfacto:
            self._generfacto()

    def _ours(self) -> None:
        torch.manual_seed(0)
        config = DreamBooth3DModelConfig(prompt=self.prompt, guide=ToyboxGuideConfig(model=self.guide))
        model: DreamBooth3DModel = config.setup(scene_box=BOX, num_train_data=1).to(self.device)
        model.distillation.embed_prompts()
        clock, samples = _Clock(self.device), 0
        cameras_config = RandomCamerasConfig(resolution=((0.0, self.resolution // 2), (0.4, self.resolution)))
        model.distillation.context = lambda: clock.part("guide")
        optimizer = FusedAdamConfig(lr=0.01, eps=1e-15).setup(params=model.field.parameters())
        for step in range(self.steps):
            model.set_progress(step / self.steps)
            size = resolution_at(cameras_config, step / self.steps)
            with clock.part("render"):
                cameras, views = random_cameras(cameras_config, 1, size)
                outputs = model(image_rays(cameras.to(self.device)))
                losses = model.get_loss_dict(outputs, {"views": views, "image_shape": (1, size, size)})
            clock.finish_step(optimizer, torch.stack([*losses.values()]).sum())
            with clock.part("optimizer"):
                model.sampler.update(step, model.field.density)
            samples += len(outputs["render"].samples.rays)
            if (step + 1) % self.report_every == 0:
                clock.report(f"ours, {size} x {size} pixels", samples // self.report_every)
                samples = 0

    def _generfacto(self) -> None:
        from nerfstudio.models import generfacto

        torch.manual_seed(0)
        clock = _Clock(self.device)
        with mock.patch.object(generfacto, "DeepFloyd", lambda device: _ConstantGuide(clock, device)):
            config = generfacto.GenerfactoModelConfig(max_res=256)
            model = config.setup(scene_box=BOX, num_train_data=1, device=self.device, grad_scaler=None).to(self.device)
        model.train_normals = model.train_shaded = True
        model.orientation_loss_mult = 1.0
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-15)
        for step in range(-1, self.generfacto_steps):
            with clock.part("render"):
                cameras, views = random_cameras(RandomCamerasConfig(), 1, self.resolution)
                outputs = model(image_rays(cameras.to(self.device)))
                batch = {"vertical": 90 - views.elevation, "central": views.azimuth}
                losses = model.get_loss_dict(outputs, batch)
            clock.finish_step(optimizer, torch.stack([*losses.values()]).sum())
            if step < 0:
                clock.reset()
        clock.report(f"generfacto, {self.resolution} x {self.resolution}", self.resolution**2 * (256 + 96 + 48))


class _ConstantGuide(torch.nn.Module):
    """An empty guide for generfacto: no text, and the gradient of a sum."""

    def __init__(self, clock: "_Clock", device: torch.device) -> None:
        super().__init__()
        self.clock, self.device = clock, device

    def get_text_embeds(self, *args) -> Tensor:
        return torch.zeros(2, 77, 8)

    def sds_loss(self, text_embeddings: Tensor, image: Tensor, **kwargs) -> Tensor:
        with self.clock.part("guide"):
            return image.mean()


class _Clock:
    """Adds up the time spent in named parts; the guide's is taken out of the rendering around it."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.reset()

    def reset(self) -> None:
        self.spent: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.steps = 0

    def now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    @contextmanager
    def part(self, name: str):
        start = self.now()
        yield
        spent = self.now() - start
        self.spent[name] += spent
        self.spent["total" if name != "guide" else "render"] += spent if name != "guide" else -spent

    def finish_step(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """The second half of a step."""
        with self.part("backward"):
            optimizer.zero_grad()
            loss.backward()
        with self.part("optimizer"):
            optimizer.step()
        self.steps += 1

    def report(self, title: str, samples: int) -> None:
        """Prints the means since the last report."""
        row = (f"{1000 * self.spent[part] / self.steps:10.1f}" for part in PARTS)
        print(title.ljust(24), *row, f"{samples:9d}", sep="", flush=True)
        self.reset()


if __name__ == "__main__":
    tyro.cli(Benchmark).main()
