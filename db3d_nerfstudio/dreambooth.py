"""DreamBooth: teach a guide a subject from a few images (Ruiz et al. 2022, arXiv 2208.12242).

    L = E w(t) |eps_hat(z_t; instance prompt) - eps|^2  +  lambda E w(t) |eps_hat(z'_t; class prompt) - eps'|^2

z encodes images of the subject; z' images that the untouched model itself made of the class, which keep it from
forgetting what else there is (prior preservation). DreamBooth3D (arXiv 2303.13508) does this three times, for 150, 800
and again 150 iterations.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image, to_tensor

from db3d_nerfstudio.distill import add_noise, standard_noise
from db3d_nerfstudio.guides.base import DiffusionGuide, PredictionType
from db3d_nerfstudio.translate import sample

MANIFEST = "manifest.json"
Progress = Callable[[int, float], None]


@dataclass
class DreamBoothConfig:
    """How a guide is fine-tuned on a subject. DreamBooth publishes lambda = 1; DreamBooth3D none of these numbers."""

    learning_rate: float | None = None
    """AdamW's rate; unset, the one that suits the guide and its kind of tuning."""
    weight_decay: float = 1e-2
    """AdamW's decay of weights."""
    max_grad_norm: float = 1.0
    """Gradients longer than this are shortened to it."""
    batch_size: int = 2
    """Images of the subject per iteration, and as many of the class."""
    snr_gamma: float | None = 5.0
    """Cap on the weight that a timestep's error in the clean z has (see `noise_weights`); unset, no cap."""
    prior_weight: float = 1.0
    """Lambda, the weight of prior preservation; at 0 no images of the class are needed."""
    num_class_images: int = 64
    """How many images of the class the untouched guide makes."""
    class_sample_steps: int = 25
    """DDIM steps for each image of the class."""
    class_guidance_scale: float = 4.0
    """Guidance scale for the images of the class: high values make them all alike, which is no prior to preserve."""
    class_seed: int = 0
    """Seed of the images of the class."""


def noise_weights(
    abar: Float[Tensor, " b"], prediction_type: PredictionType, snr_gamma: float | None
) -> Float[Tensor, " b"]:
    """The weight of a squared error in eps that amounts to the guide's own training loss, capped.

    With SNR = abar / (1 - abar), a squared error in eps is one in z times SNR. A network trained on eps weights its
    error in z by SNR, one trained on v by SNR + 1. Capping this weight at gamma is Min-SNR (Hang et al. 2023, arXiv
    2303.09556). For networks that predict z itself, SNR + 1 = 1 / (1 - abar) capped at about 5 is what the toybox is
    trained with: SNR alone would teach nothing at the high noise where colours and layout are decided.
    """
    snr = (abar / (1 - abar)).clamp(min=1e-6)  # Below, eps says nothing about z within float32.
    weight = snr if prediction_type == "epsilon" else snr + 1
    if snr_gamma is not None:
        weight = weight.clamp(max=snr_gamma)
    return weight / snr


def finetune(
    guide: DiffusionGuide,
    images: Float[Tensor, "n 3 h w"],
    prompts: list[str],
    class_images: Float[Tensor, "m 3 h2 w2"] | None,
    class_prompt: str,
    *,
    steps: int,
    config: DreamBoothConfig,
    seed: int,
    progress: Progress | None = None,
) -> list[float]:
    """Move `guide.parameters()` in place; return the loss of every iteration, which depends on `seed` alone.

    Args:
        prompts: One per image.
        class_images: What `class_images()` made; None only if the config's prior_weight is 0.
        progress: Called after every iteration with the number done and its loss.
    """
    if len(prompts) != len(images):
        raise ValueError(f"Every image needs its prompt: {len(images)} images, {len(prompts)} prompts.")
    groups = [_Examples(guide, images, prompts, weight=1.0)]
    if config.prior_weight > 0:
        if class_images is None:
            raise ValueError(
                "Prior preservation needs class images: make them with class_images(), or set prior_weight to 0."
            )
        groups.append(_Examples(guide, class_images, [class_prompt], weight=config.prior_weight))

    parameters = guide.parameters()
    optimizer = torch.optim.AdamW(
        parameters,
        lr=guide.learning_rate if config.learning_rate is None else config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True,
    )
    scaler = torch.amp.GradScaler(guide.device.type, enabled=guide.dtype == torch.float16)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for step in range(steps):
        loss = _loss(guide, groups, config, generator)
        losses.append(loss.item())
        if not loss.isfinite():
            raise FloatingPointError(
                f"The DreamBooth loss became {losses[-1]} at iteration {step + 1} of {steps}. Lower the learning rate "
                f"({optimizer.param_groups[0]['lr']:g}), or set the guide's dtype to float32."
            )
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        if progress is not None:
            progress(step + 1, losses[-1])
    optimizer.zero_grad()
    return losses


class _Examples:
    """Images with their prompts, encoded once; prompts again for every batch only where the text encoder is trained."""

    def __init__(self, guide: DiffusionGuide, images: Tensor, prompts: list[str], weight: float) -> None:
        self.weight = weight
        self._guide = guide
        with torch.no_grad():
            self._z = torch.cat([guide.encode(image[None].to(guide.device)) for image in images])
        self._prompts = sorted(set(prompts))
        self._prompt_of = torch.tensor([self._prompts.index(prompt) for prompt in prompts]).expand(len(images))
        text = guide.embed(self._prompts)
        self._text = None if text.requires_grad else text

    def draw(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Encoded images and text embeddings of `num` examples."""
        index = torch.randint(len(self._z), (num,), generator=generator)
        text = self._guide.embed(self._prompts) if self._text is None else self._text
        return self._z[index.to(self._z.device)], text[self._prompt_of[index].to(text.device)]


def _loss(
    guide: DiffusionGuide, groups: list[_Examples], config: DreamBoothConfig, generator: torch.Generator
) -> Float[Tensor, ""]:
    """The module's equation on one random batch of every group, all in one forward pass."""
    z, text = (torch.cat(parts) for parts in zip(*(g.draw(config.batch_size, generator) for g in groups), strict=True))
    t: Int[Tensor, " b"] = torch.randint(len(guide.alphas_cumprod), (len(z),), generator=generator).to(guide.device)
    eps = standard_noise(z.shape, guide.device, generator)
    eps_hat = guide.predict_noise(add_noise(guide, z, t, eps), t, text)
    weights = noise_weights(guide.alphas_cumprod[t], guide.prediction_type, config.snr_gamma)
    errors = weights * (eps_hat - eps).square().mean(dim=(1, 2, 3))
    return sum(group.weight * part.mean() for group, part in zip(groups, errors.split(config.batch_size), strict=True))


def class_images(
    guide: DiffusionGuide,
    prompt: str,
    config: DreamBoothConfig,
    path: Path,
    progress: Callable[[int], None] | None = None,
    batch_size: int = 8,
) -> Float[Tensor, "m 3 h w"]:
    """Images of the class, made by the guide's base model (to which this returns the guide), kept in the folder `path`.

    They are made again if the folder's manifest tells of another model, prompt, number, seed or sampler.
    `progress` is called with the number of images made so far.
    """
    guide.load(None)
    manifest = {
        "model": guide.fingerprint(),
        "prompt": prompt,
        "number": config.num_class_images,
        "seed": config.class_seed,
        "sampler": {"name": "ddim", "steps": config.class_sample_steps, "guidance_scale": config.class_guidance_scale},
    }
    if not _made_by(path, manifest):
        unfinished = path.with_name(path.name + ".tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        _sample_into(unfinished, guide, prompt, config, batch_size, progress)
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=2))
        shutil.rmtree(path, ignore_errors=True)
        os.replace(unfinished, path)
    files = sorted(path.glob("*.png"))
    return torch.stack([to_tensor(Image.open(file).convert("RGB")) for file in files]).to(guide.device)


def _made_by(path: Path, manifest: dict) -> bool:
    file = path / MANIFEST
    return file.exists() and json.loads(file.read_text()) == manifest


def _sample_into(
    folder: Path,
    guide: DiffusionGuide,
    prompt: str,
    config: DreamBoothConfig,
    batch_size: int,
    progress: Callable[[int], None] | None,
) -> None:
    with torch.no_grad():
        text, uncond = guide.embed([prompt, ""]).split(1)
    generator = torch.Generator().manual_seed(config.class_seed)
    made = 0
    while made < config.num_class_images:
        num = min(batch_size, config.num_class_images - made)
        images = sample(
            guide,
            text.expand(num, -1, -1),
            uncond.expand(num, -1, -1),
            steps=config.class_sample_steps,
            guidance_scale=config.class_guidance_scale,
            generator=generator,
        )
        for image in images:
            to_pil_image(image.cpu()).save(folder / f"{made:04d}.png")
            made += 1
        if progress is not None:
            progress(made)
