"""The speed of DreamBooth: `python -m db3d_nerfstudio.timing.dreambooth --steps 20 --tuning lora`.

Times an iteration of `dreambooth.finetune` and one of the loop of diffusers' training script
(examples/dreambooth/train_dreambooth.py and its LoRA twin): the same weights, photos, batch and optimizer. The script
opens the photos, reads the prompts and encodes both anew in every iteration; here, what does not change is computed
once. On a CPU, times are CPU time of the process, so that other programs on the machine disturb them little.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import tyro
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from db3d_nerfstudio.diffusion.dreambooth import DreamBoothConfig, Progress, finetune
from db3d_nerfstudio.diffusion.training_set import Prior, TrainingSet
from db3d_nerfstudio.images import tensor_to_image
from db3d_nerfstudio.photos import load_photo, load_photos, photo_paths
from db3d_nerfstudio.ranges import Count
from db3d_nerfstudio.toybox.examples import default_subject
from db3d_nerfstudio.toybox.guide import ToyboxGuide, ToyboxGuideConfig
from db3d_nerfstudio.toybox.sides import hints, with_hints

INSTANCE, CLASS = "a photo of a sks duck", "a photo of a duck"
WARM_UP = 3


@dataclass
class BenchmarkConfig:
    """Time an iteration of DreamBooth, and one of diffusers' training script, on the embedded model."""

    data: Path | None = None
    """Folder of the subject's photos; by default the bundled ones, of 256 x 256 pixels."""
    photo_side: Count | None = None
    """Use copies of the photos with this side in pixels, as JPEG; phones take photos of 3000 to 4000 pixels."""
    tuning: Literal["full", "lora"] = "full"
    """What is trained: the whole UNet, or an adapter."""
    batch_size: Count = 2
    """Images of the subject per iteration, and as many of the class."""
    steps: Count = 20
    """Iterations to time, after a few to warm up."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to run."""
    threads: Count = 1
    """CPU threads."""


def main(config: BenchmarkConfig) -> None:
    """Run both and print milliseconds per iteration."""
    torch.set_num_threads(config.threads)
    photos = config.data or default_subject()[0]
    with tempfile.TemporaryDirectory() as folder:
        others = Path(folder, "class")
        others.mkdir()
        for i in range(8):
            noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(i))
            tensor_to_image(noise).save(others / f"{i}.png")
        if config.photo_side is not None:
            photos = _copies(photos, Path(folder, "photos"), config.photo_side)
        script, ours = (_seconds(run, config, photos, others) for run in (train_like_the_script, _finetune))
    print(f"{'ms per iteration':<28}{'mean':>9}")
    print(f"{'diffusers training script':<28}{1000 * script:>9.1f}")
    print(f"{'db3d':<28}{1000 * ours:>9.1f}")
    print(f"{'ratio':<28}{script / ours:>9.2f}")


def _copies(photos: Path, folder: Path, side: int) -> Path:
    folder.mkdir()
    for path in photo_paths(photos):
        load_photo(path, side).save(folder / f"{path.stem}.jpg", quality=92)
    return folder


Run = Callable[[ToyboxGuide, Path, Path, int, int, Progress], None]


def _seconds(run: Run, config: BenchmarkConfig, photos: Path, class_folder: Path) -> float:
    """Mean time of an iteration, the first few left out."""
    on_gpu, ends = config.device.startswith("cuda"), []

    def note(step: int, loss: float) -> None:
        if on_gpu:
            torch.cuda.synchronize()
        ends.append(time.perf_counter() if on_gpu else time.process_time())

    guide = ToyboxGuideConfig(tuning=config.tuning).setup(device=config.device)
    run(guide, photos, class_folder, WARM_UP + config.steps, config.batch_size, note)
    return (ends[-1] - ends[WARM_UP - 1]) / config.steps


def _finetune(
    guide: ToyboxGuide, photos: Path, class_folder: Path, steps: int, batch_size: int, progress: Progress
) -> None:
    images, others = load_photos(photos, guide.resolution), load_photos(class_folder, guide.resolution)
    captions, config = [{INSTANCE: 1.0}] * len(images), DreamBoothConfig(batch_size=batch_size)
    data = TrainingSet(images, captions, prior=Prior(others, [CLASS] * len(others)))
    finetune(guide, data, config, steps, seed=0, progress=progress)


class Examples(Dataset):
    """The script's data set: pairs of a photo and a class image, with tokenized prompts."""

    def __init__(self, guide: ToyboxGuide, photos: Path, class_folder: Path) -> None:
        self.guide, self.photos, self.others = guide, photo_paths(photos), photo_paths(class_folder)

    def __len__(self) -> int:
        return max(len(self.photos), len(self.others))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        pair = self.photos[index % len(self.photos)], self.others[index % len(self.others)]
        photo, other = (self._pixels(path) for path in pair)
        return photo, other, self._tokens(INSTANCE), self._tokens(CLASS)

    def _pixels(self, path: Path) -> Tensor:
        from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

        side = self.guide.resolution
        pixels = Compose([Resize(side), CenterCrop(side), ToTensor(), Normalize([0.5], [0.5])])
        return cast(Tensor, pixels(ImageOps.exif_transpose(Image.open(path)).convert("RGB")))

    def _tokens(self, prompt: str) -> Tensor:
        tokenizer = self.guide.tokenizer
        length = {"truncation": True, "padding": "max_length", "max_length": tokenizer.model_max_length}
        return tokenizer(prompt, **length, return_tensors="pt").input_ids[0]


def train_like_the_script(
    guide: ToyboxGuide, photos: Path, class_folder: Path, steps: int, batch_size: int, progress: Progress
) -> None:
    """The script's loop on the guide's networks; its target is v, which is what they predict."""
    from accelerate import Accelerator
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from torch.nn.functional import mse_loss

    accelerator = Accelerator(cpu=guide.device.type == "cpu")
    noising = cast(Any, DDPMScheduler.from_pretrained(guide.source, subfolder="scheduler"))  # Its types are not true.
    unet = guide.unet.to(memory_format=torch.contiguous_format).train()
    optimizer = torch.optim.AdamW(guide.parameters(), lr=5e-6, weight_decay=1e-2)
    rates = get_scheduler("constant", optimizer)
    data = DataLoader(Examples(guide, photos, class_folder), batch_size, shuffle=True, drop_last=True)
    unet, optimizer, data, rates = accelerator.prepare(unet, optimizer, data, rates)
    step = 0
    while step < steps:
        for photo, other, tokens, class_tokens in data:
            with accelerator.accumulate(unet):
                z = guide.encode(torch.cat([photo, other]) / 2 + 0.5)
                eps = torch.randn_like(z)
                t = torch.randint(noising.config.num_train_timesteps, (len(z),), device=z.device)
                tokens = torch.cat([tokens, class_tokens])
                inputs = with_hints(noising.add_noise(z, eps, t), hints(tokens, guide.tokenizer))
                output = unet(inputs, t, guide.text_encoder(tokens)[0], return_dict=False)[0]
                (mine, others), (target, target_of_others) = output.chunk(2), noising.get_velocity(z, eps, t).chunk(2)
                loss = mse_loss(mine, target) + mse_loss(others, target_of_others)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(unet.parameters(), 1.0)
                optimizer.step()
                rates.step()
                optimizer.zero_grad(set_to_none=False)
            step += 1
            progress(step, loss.detach().item())
            if step == steps:
                return


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
