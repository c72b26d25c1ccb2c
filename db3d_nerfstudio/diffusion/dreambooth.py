"""DreamBooth: teach a guide a subject from a few images (Ruiz et al. 2022, arXiv 2208.12242).

    L = E w(t) |eps_hat(z_t; instance prompt) - eps|^2  +  lambda E w'(t) |eps_hat(z'_t; class prompt) - eps'|^2

z encodes images of the subject; z' images that the untouched model itself made of the class, which keep it from
forgetting what else there is (prior preservation). DreamBooth3D (arXiv 2303.13508) does this three times, for 150, 800
and again 150 iterations. What moves is the guide's choice: all weights, an adapter, or the embedding of one new word,
which makes it Textual Inversion (Gal et al. 2022, arXiv 2208.01618).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import interpolate

from db3d_nerfstudio.diffusion.guidance import add_noise, standard_noise
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.base import DiffusionGuide, PredictionType

Progress = Callable[[int, float], None]
ViewWords = Literal["none", "file_names", "guess"]
Captions = dict[str, float]
"""What an image may be called, and the shares in which it is; they sum to 1."""


@dataclass
class DreamBoothConfig:
    """How a guide is fine-tuned on a subject. DreamBooth publishes lambda = 1; DreamBooth3D none of these numbers."""

    learning_rate: float | None = None
    """AdamW's rate; unset, the one that suits the guide and its kind of tuning."""
    weight_decay: float = 1e-2
    """AdamW's decay of weights."""
    max_grad_norm: float = 1.0
    """Gradients longer than this are shortened to it."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit keeps AdamW's moments in 8 bits: a quarter of their memory, by bitsandbytes (`pip install` it)."""
    ema_decay: float | None = None
    """Keep the running mean of the weights, with this decay once past the first iterations, and not the last ones."""
    batch_size: int = 2
    """Images of the subject per iteration, and as many of the class."""
    snr_gamma: float | None = 5.0
    """Cap on the weight that a timestep's error in the clean z has (see `noise_weights`); unset, no cap."""
    prior_weight: float = 1.0
    """Lambda, the weight of prior preservation; at 0 no images of the class are needed."""
    prior_snr_gamma: float | None = 5.0
    """The cap for the images of the class; diffusers' training scripts have none there."""
    masked_loss: bool = False
    """Learn only from the opaque part of photos with an alpha channel: the subject, not what was around it."""
    view_words: ViewWords = "none"
    """Whether captions name the side that a photo shows: not at all, where its file name does (`2_back.jpg`), or
    otherwise the one that the guide takes it for."""
    num_class_images: int = 64
    """How many images of the class the untouched guide makes."""
    class_views: bool = False
    """Images of the class show it from all sides, and their captions say from which: without, the words for sides lose
    their meaning for the subject as its photos, which show few sides, are learned."""
    class_sample_steps: int = 25
    """DDIM steps for each image of the class."""
    class_guidance_scale: float = 4.0
    """Guidance scale for the images of the class: high values make them all alike, which is no prior to preserve."""
    class_seed: int = 0
    """Seed of the images of the class."""


class Prior(NamedTuple):
    """Images of the class and their prompts: what the untouched guide knows, to be preserved."""

    images: Float[Tensor, "m 3 h w"]
    prompts: list[str]


def noise_weights(
    abar: Float[Tensor, " b"], prediction_type: PredictionType, snr_gamma: float | None
) -> Float[Tensor, " b"]:
    """The weight of a squared error in eps that amounts to the guide's own training loss, capped.

    With SNR = abar / (1 - abar), a squared error in eps is one in z times SNR. A network trained on eps weights its
    error in z by SNR, one trained on v by SNR + 1. Min-SNR (Hang et al. 2023, arXiv 2303.09556) puts min(SNR, gamma) in
    place of either. For networks that predict z itself, SNR + 1 = 1 / (1 - abar) capped at about 5 is what the toybox
    is trained with: SNR alone would teach nothing at the high noise where colours and layout are decided.
    """
    snr = (abar / (1 - abar)).clamp(min=1e-6)  # Below, eps says nothing about z within float32.
    if prediction_type == "sample":
        weight = snr + 1 if snr_gamma is None else (snr + 1).clamp(max=snr_gamma)
    elif snr_gamma is not None:
        weight = snr.clamp(max=snr_gamma)
    else:
        weight = snr if prediction_type == "epsilon" else snr + 1
    return weight / snr


def dreambooth_loss(
    guide: DiffusionGuide,
    z: Float[Tensor, "b c hz wz"],
    text: Float[Tensor, "b n d"],
    t: Int[Tensor, " b"],
    eps: Float[Tensor, "b c hz wz"],
    mask: Float[Tensor, "b 1 hz wz"],
    num_instance: int,
    config: DreamBoothConfig,
) -> Float[Tensor, ""]:
    """The module's equation on one batch in one forward pass: first `num_instance` of the subject, then of the class.

    Errors count where `mask` is 1, as a mean over that part, so that a subject teaches the same however small it is.
    """
    eps_hat = guide.predict_noise(add_noise(guide, z, t, eps), t, text)
    errors = ((eps_hat - eps).square() * mask / mask.mean(dim=(1, 2, 3), keepdim=True)).mean(dim=(1, 2, 3))
    abar, kind, n = guide.alphas_cumprod[t], guide.prediction_type, num_instance
    loss = (noise_weights(abar[:n], kind, config.snr_gamma) * errors[:n]).mean()
    if n < len(errors):
        prior = (noise_weights(abar[n:], kind, config.prior_snr_gamma) * errors[n:]).mean()
        loss = loss + config.prior_weight * prior
    return loss


def needs_prior(guide: DiffusionGuide, config: DreamBoothConfig) -> bool:
    """Whether images of the class take part: not if lambda is 0, nor if a new word is all that can move."""
    return config.prior_weight > 0 and guide.can_forget


def finetune(
    guide: DiffusionGuide,
    images: Float[Tensor, "n 3 h w"],
    captions: list[Captions],
    prior: Prior | None,
    *,
    steps: int,
    config: DreamBoothConfig,
    seed: int,
    masks: Float[Tensor, "n 1 h w"] | None = None,
    progress: Progress | None = None,
) -> list[float]:
    """Move `guide.parameters()` in place; return the loss of every iteration, which depends on `seed` alone.

    Args:
        captions: Those of each image; whenever it is shown, one is drawn.
        prior: What `class_images()` made; None only if `needs_prior` says so.
        masks: 1 where the images show the subject; None for everywhere.
        progress: Called after every iteration with the number done and its loss.
    """
    if len(captions) != len(images):
        raise ValueError(f"Every image needs its captions: {len(images)} images, captions of {len(captions)}.")
    groups = [_Examples(guide, images, captions, masks)]
    if needs_prior(guide, config):
        if prior is None:
            raise ValueError(
                "Prior preservation needs class images: make them with class_images(), or set prior_weight to 0."
            )
        groups.append(_Examples(guide, prior.images, [{prompt: 1.0} for prompt in prior.prompts], None))
    text = _Texts(guide, sorted({prompt for group in groups for each in group.captions for prompt in each}))

    parameters = guide.parameters()
    optimizer = _optimizer(parameters, guide, config)
    average = None if config.ema_decay is None else _average(parameters, config.ema_decay)
    scaler = torch.amp.GradScaler(guide.device.type, enabled=guide.dtype == torch.float16)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for step in range(steps):
        loss = _loss(guide, groups, text, config, generator)
        losses.append(loss.item())
        if not loss.isfinite():
            raise FloatingPointError(
                f"The DreamBooth loss became {losses[-1]} at iteration {step + 1} of {steps}. Lower the learning rate "
                f"({optimizer.param_groups[0]['lr']:g}), or set the guide's dtype to float32."
            )
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        if step == 0 and not any(p.grad is not None and p.grad.any() for p in parameters):
            raise UserError(
                f'Nothing that may move takes part in the prompt "{next(iter(captions[0]))}". For textual inversion, '
                "its identifier must be the guide's new_token."
            )
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        if average is not None:
            average.step(parameters)
        if progress is not None:
            progress(step + 1, losses[-1])
    if average is not None:
        average.copy_to(parameters)
    optimizer.zero_grad()
    return losses


class _Examples:
    """Images with their captions and masks, encoded once."""

    def __init__(self, guide: DiffusionGuide, images: Tensor, captions: list[Captions], masks: Tensor | None) -> None:
        self.captions = captions
        with torch.no_grad():
            self.z = torch.cat([guide.encode(image[None].to(guide.device)) for image in images])
        if masks is None:
            self.mask = self.z.new_ones(len(self.z), 1, *self.z.shape[2:])
        else:
            self.mask = interpolate(masks.to(self.z), self.z.shape[2:], mode="area")

    def draw_caption(self, index: int, generator: torch.Generator) -> str:
        """One of an image's captions, by their shares."""
        captions = self.captions[index]
        if len(captions) == 1:
            return next(iter(captions))
        drawn = torch.multinomial(torch.tensor(list(captions.values())), 1, generator=generator)
        return list(captions)[drawn]


class _Texts:
    """Text embeddings of prompts, computed once; again for every batch only where training changes them."""

    def __init__(self, guide: DiffusionGuide, prompts: list[str]) -> None:
        self._guide = guide
        self._index = {prompt: i for i, prompt in enumerate(prompts)}
        text = guide.embed(prompts)
        self._text = None if text.requires_grad else text

    def __call__(self, prompts: list[str]) -> Float[Tensor, "b n d"]:
        text = self._guide.embed(list(self._index)) if self._text is None else self._text
        return text[torch.tensor([self._index[prompt] for prompt in prompts], device=text.device)]


def _loss(
    guide: DiffusionGuide,
    groups: list[_Examples],
    text: _Texts,
    config: DreamBoothConfig,
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """`dreambooth_loss` on one random batch of every group."""
    drawn = [torch.randint(len(group.z), (config.batch_size,), generator=generator) for group in groups]
    pairs = list(zip(groups, drawn, strict=True))
    z = torch.cat([group.z[index.to(guide.device)] for group, index in pairs])
    mask = torch.cat([group.mask[index.to(guide.device)] for group, index in pairs])
    prompts = [group.draw_caption(i, generator) for group, index in pairs for i in index.tolist()]
    t = torch.randint(len(guide.alphas_cumprod), (len(z),), generator=generator).to(guide.device)
    eps = standard_noise(z.shape, guide.device, generator)
    return dreambooth_loss(guide, z, text(prompts), t, eps, mask, config.batch_size, config)


def _optimizer(parameters: list[Parameter], guide: DiffusionGuide, config: DreamBoothConfig) -> torch.optim.Optimizer:
    settings = {
        "lr": guide.learning_rate if config.learning_rate is None else config.learning_rate,
        "weight_decay": config.weight_decay,
    }
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **settings, fused=True)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise UserError(
            'The 8-bit optimizer needs bitsandbytes: pip install "db3d_nerfstudio[8bit]", or set optimizer to adamw.'
        ) from None
    return AdamW8bit(parameters, **settings)


def _average(parameters: list[Parameter], decay: float):
    from diffusers.training_utils import EMAModel

    return EMAModel(parameters, decay=decay, foreach=True)


@torch.no_grad()
def save_checked(guide: DiffusionGuide, path: Path, prompt: str) -> float:
    """Save a fine-tune, load it again and compare; return by how much it moved the guide's answer to the prompt.

    The answer is `predict_noise` on fixed noise, its change relative to the base model's answer (root mean square).

    Raises:
        RuntimeError: what was read is not what was written.
        UserError: fine-tuning changed nothing.
    """
    tuned = _answer(guide, prompt)
    guide.save(path)
    guide.load(None)
    base = _answer(guide, prompt)
    guide.load(path)
    again, change = _answer(guide, prompt), (tuned - base).norm()
    if change == 0:
        raise UserError(
            f'Fine-tuning left the guide\'s answer to "{prompt}" as it was: raise the learning rate or the number of '
            "iterations, and check that the prompt contains what is to be learned."
        )
    if (again - tuned).norm() > 1e-3 * change:
        raise RuntimeError(f"The fine-tune in {path} was not saved faithfully: loaded again, it answers differently.")
    return (change / base.norm()).item()


def _answer(guide: DiffusionGuide, prompt: str) -> Float[Tensor, "1 c hz wz"]:
    size = guide.encode(torch.zeros(1, 3, guide.resolution, guide.resolution, device=guide.device)).shape
    noise = standard_noise(size, guide.device, torch.Generator().manual_seed(0))
    t = torch.tensor([len(guide.alphas_cumprod) // 2], device=guide.device)
    return guide.predict_noise(noise, t, guide.embed([prompt]))
