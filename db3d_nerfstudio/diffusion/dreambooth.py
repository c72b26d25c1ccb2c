"""DreamBooth: teach a guide a subject from a few images (Ruiz et al. 2022, arXiv 2208.12242).

    L = E w(t) |eps_hat(z_t; instance prompt) - eps|^2  +  lambda E w'(t) |eps_hat(z'_t; class prompt) - eps'|^2

z encodes images of the subject; z' images of the class by the untouched model, which keep it from forgetting the class
(prior preservation). DreamBooth3D (arXiv 2303.13508) does this three times, for 150, 800 and again 150 iterations. The
guide's tuning decides what is trained: all weights, an adapter, or the embedding of one new word, which is Textual
Inversion (Gal et al. 2022, arXiv 2208.01618).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import interpolate

from db3d_nerfstudio.diffusion.captions import Captions, ViewWords
from db3d_nerfstudio.diffusion.guidance import add_noise, standard_noise
from db3d_nerfstudio.diffusion.sampling import SamplingConfig
from db3d_nerfstudio.diffusion.training_set import TrainingSet
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.base import DiffusionGuide, PredictionType
from db3d_nerfstudio.ranges import Count, Natural, NonNegative, Positive, Share

Progress = Callable[[int, float], None]


@dataclass
class DreamBoothConfig:
    """Fine-tuning on a subject. DreamBooth publishes lambda = 1, DreamBooth3D none of these numbers."""

    learning_rate: Positive | None = None
    """Learning rate of AdamW; by default the guide's own rate for its kind of tuning."""
    weight_decay: NonNegative = 1e-2
    """Weight decay of AdamW."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit keeps AdamW's moments in 8 bits, a quarter of their memory; it needs bitsandbytes."""
    ema_decay: Share | None = None
    """Decay of a running mean of the weights, which replaces the last weights; it is lower in the first iterations."""
    batch_size: Count = 2
    """Images of the subject per iteration, and as many of the class."""
    snr_gamma: Positive | None = 5.0
    """Cap on the weight of a timestep's error in the clean z, as in Min-SNR (see `noise_weights`); None is no cap."""
    prior_loss_weight: NonNegative = 1.0
    """Lambda, the weight of prior preservation; at 0 no images of the class are needed."""
    prior_snr_gamma: Positive | None = 5.0
    """The cap for images of the class; None, no cap, is what diffusers' training scripts use."""
    masked_loss: bool = False
    """Learn only the opaque part of photos with an alpha channel: the subject, not its surroundings."""
    view_words: ViewWords = "none"
    """Whether captions name the side that a photo shows: none; file_names, from names such as `2_front_left.jpg`; or
    guess, which asks the guide where a file name has no side."""
    num_class_images: Count = 64
    """Number of images of the class that the untouched guide draws."""
    class_views: bool = False
    """Draw images of the class from all sides, and name the side in their captions, so that the words for sides keep
    their meaning while photos of a few sides are learned."""
    class_sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(guidance_scale=4.0))
    """How images of the class are drawn. At a high guidance scale they look alike, and preserve little of the prior."""
    class_seed: Natural = 0
    """Seed of the images of the class."""


def noise_weights(
    abar: Float[Tensor, " b"], prediction_type: PredictionType, snr_gamma: float | None
) -> Float[Tensor, " b"]:
    """The weight of a squared error in eps that amounts to the guide's own training loss, capped.

    With SNR = abar / (1 - abar), a squared error in eps is one in z times SNR. A network trained on eps weights its
    error in z by SNR, one trained on v by SNR + 1. Min-SNR (Hang et al. 2023, arXiv 2303.09556) replaces either by
    min(SNR, gamma). For networks that predict z itself, such as the toybox's, the weight is SNR + 1 = 1 / (1 - abar),
    capped: SNR alone would vanish at the high noise where colours and layout are decided. So it is for flows, whose
    squared error in the velocity is one in z times 1 / s^2 = (1 + sqrt(SNR))^2.
    """
    snr = (abar / (1 - abar)).clamp(min=1e-6)  # Below, eps says nothing about z within float32.
    if prediction_type in ("sample", "velocity"):
        weight = snr + 1 if prediction_type == "sample" else (1 + snr.sqrt()).square()
        weight = weight if snr_gamma is None else weight.clamp(max=snr_gamma)
    elif snr_gamma is not None:
        weight = snr.clamp(max=snr_gamma)
    else:
        weight = snr if prediction_type == "epsilon" else snr + 1
    return weight / snr


class Batch(NamedTuple):
    """Noised images: first `num_instance` of the subject, then those of the class."""

    z: Float[Tensor, "b c hz wz"]
    text: Float[Tensor, "b n d"]
    t: Int[Tensor, " b"]
    eps: Float[Tensor, "b c hz wz"]
    mask: Float[Tensor, "b 1 hz wz"]
    """Where errors count."""
    num_instance: int


def dreambooth_loss(guide: DiffusionGuide, batch: Batch, config: DreamBoothConfig) -> Float[Tensor, ""]:
    """The module's equation on one batch in one forward pass.

    Errors are a mean over where the mask is 1, so that a subject teaches the same however small it is.
    """
    z, text, t, eps, mask, n = batch
    eps_hat = guide.predict_noise(add_noise(guide, z, t, eps), t, text)
    errors = ((eps_hat - eps).square() * mask / mask.mean(dim=(1, 2, 3), keepdim=True)).mean(dim=(1, 2, 3))
    abar, kind = guide.abar(t), guide.prediction_type
    loss = (noise_weights(abar[:n], kind, config.snr_gamma) * errors[:n]).mean()
    if n < len(errors):
        prior = (noise_weights(abar[n:], kind, config.prior_snr_gamma) * errors[n:]).mean()
        loss = loss + config.prior_loss_weight * prior
    return loss


def needs_prior(guide: DiffusionGuide, config: DreamBoothConfig) -> bool:
    """Whether images of the class are used: not if lambda is 0, nor if only a new word is trained."""
    return config.prior_loss_weight > 0 and guide.can_forget


def finetune(
    guide: DiffusionGuide,
    data: TrainingSet,
    config: DreamBoothConfig,
    max_train_steps: int,
    seed: int,
    progress: Progress | None = None,
) -> list[float]:
    """Train `guide.parameters()` in place; return the loss of every iteration, which depends on `seed` alone.

    Args:
        progress: Called after every iteration with the number done and its loss.

    Raises:
        FloatingPointError: the loss is not finite.
        UserError: the captions do not involve anything that is trained.
    """
    batches, update = _Batches(guide, data, config), _Update(guide, config)
    generator, losses = torch.Generator().manual_seed(seed), []
    for step in range(max_train_steps):
        loss = dreambooth_loss(guide, batches.draw(generator), config)
        losses.append(loss.item())
        if not loss.isfinite():
            raise FloatingPointError(
                f"The DreamBooth loss became {losses[-1]} at iteration {step + 1} of {max_train_steps}. Lower the "
                f"learning rate ({update.learning_rate:g}), or set the guide's dtype to float32."
            )
        update.backward(loss)
        if step == 0 and not update.moves_anything():
            raise UserError(
                f'The prompt "{next(iter(data.captions[0]))}" does not involve anything that is trained. For textual '
                "inversion, its identifier must be the guide's new_token."
            )
        update.step()
        if progress is not None:
            progress(step + 1, losses[-1])
    update.finish()
    return losses


class _Batches:
    """Random batches of a training set, whose images and captions are encoded once."""

    def __init__(self, guide: DiffusionGuide, data: TrainingSet, config: DreamBoothConfig) -> None:
        self._guide, self._num, self._before_batch = guide, config.batch_size, data.before_batch
        self._groups = [_Examples(guide, data.images, data.captions, data.masks)]
        if needs_prior(guide, config):
            if data.prior is None:
                raise ValueError(
                    "Prior preservation needs class images: make them with class_images(), or set prior_loss_weight "
                    "to 0."
                )
            captions = [{prompt: 1.0} for prompt in data.prior.prompts]
            self._groups.append(_Examples(guide, data.prior.images, captions, None))
        prompts = sorted({prompt for group in self._groups for each in group.captions for prompt in each})
        self._text = _Texts(guide, prompts)

    def draw(self, generator: torch.Generator) -> Batch:
        """`batch_size` images of the subject, and as many of the class if they are used."""
        device, groups = self._guide.device, self._groups
        drawn = [torch.randint(len(group.z), (self._num,), generator=generator) for group in groups]
        if self._before_batch is not None:
            self._before_batch(drawn[0], generator)
        pairs = list(zip(groups, drawn, strict=True))
        z = torch.cat([group.z[index.to(device)] for group, index in pairs])
        mask = torch.cat([group.mask[index.to(device)] for group, index in pairs])
        prompts = [group.draw_caption(i, generator) for group, index in pairs for i in index.tolist()]
        t = self._guide.draw_timesteps(len(z), generator)
        eps = standard_noise(z.shape, device, generator)
        return Batch(z, self._text(prompts), t, eps, mask, self._num)


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
    """Text embeddings of prompts, computed once, or for every batch if training changes them."""

    def __init__(self, guide: DiffusionGuide, prompts: list[str]) -> None:
        self._guide = guide
        self._index = {prompt: i for i, prompt in enumerate(prompts)}
        text = guide.embed(prompts)
        self._text = None if text.requires_grad else text

    def __call__(self, prompts: list[str]) -> Float[Tensor, "b n d"]:
        text = self._guide.embed(list(self._index)) if self._text is None else self._text
        return text[torch.tensor([self._index[prompt] for prompt in prompts], device=text.device)]


class _Update:
    """One step of the optimizer: scaled gradients, clipped, and a running mean of the weights."""

    def __init__(self, guide: DiffusionGuide, config: DreamBoothConfig) -> None:
        self._parameters, self._max_norm = guide.parameters(), config.max_grad_norm
        self._optimizer = _optimizer(self._parameters, guide, config)
        self._scaler = torch.amp.GradScaler(guide.device.type, enabled=guide.dtype == torch.float16)
        self._average = None
        if config.ema_decay is not None:
            from diffusers.training_utils import EMAModel

            self._average = EMAModel(self._parameters, decay=config.ema_decay, foreach=True)

    @property
    def learning_rate(self) -> float:
        """The rate in use."""
        return self._optimizer.param_groups[0]["lr"]

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Leave the loss's gradient in the parameters, which have none."""
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)

    def moves_anything(self) -> bool:
        """Whether any gradient differs from zero."""
        return any(p.grad is not None and p.grad.any() for p in self._parameters)

    def step(self) -> None:
        """Update the parameters."""
        torch.nn.utils.clip_grad_norm_(self._parameters, self._max_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()  # Now: the next forward pass needs their memory.
        if self._average is not None:
            self._average.step(self._parameters)

    def finish(self) -> None:
        """Put the mean of the weights in place, if there is one."""
        if self._average is not None:
            self._average.copy_to(self._parameters)


def _optimizer(parameters: list[Parameter], guide: DiffusionGuide, config: DreamBoothConfig) -> torch.optim.Optimizer:
    rate = guide.learning_rate if config.learning_rate is None else config.learning_rate
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=config.weight_decay, fused=True)
    return _adamw8bit()(parameters, lr=rate, weight_decay=config.weight_decay)


def check_optimizer(config: DreamBoothConfig) -> None:
    """Raise a UserError if the optimizer needs a package that is missing."""
    if config.optimizer == "adamw8bit":
        _adamw8bit()


def _adamw8bit() -> Callable[..., torch.optim.Optimizer]:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise UserError(
            'The 8-bit optimizer needs bitsandbytes: pip install "db3d_nerfstudio[8bit]", or set optimizer to adamw.'
        ) from None
    return AdamW8bit
