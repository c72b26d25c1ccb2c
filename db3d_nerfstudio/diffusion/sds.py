"""Score distillation of a frozen guide into a rendering (DreamFusion, Poole et al. 2022, arXiv 2209.14988)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from db3d_nerfstudio.cameras import Views
from db3d_nerfstudio.console import announce
from db3d_nerfstudio.diffusion.guidance import Conditioning, add_noise, guided_noise, rescaled, standard_noise
from db3d_nerfstudio.diffusion.prompt_bank import PromptBank
from db3d_nerfstudio.errors import DivergedError
from db3d_nerfstudio.guides.base import DiffusionGuide
from db3d_nerfstudio.ranges import NonNegative, Share, ShareInterval
from db3d_nerfstudio.words import drop_identifier

MAX_SKIPPED = 10
"""How many steps in a row are skipped because the guide's answer is not finite, before the run ends."""


class NonFiniteNoiseError(FloatingPointError):
    """The guide's noise estimate is not finite."""


@dataclass
class SDSConfig:
    """Guidance, prompts and timesteps of score distillation."""

    guidance_scale: NonNegative = 8.0
    """Classifier-free guidance `uncond + s (cond - uncond)`; 1 is no guidance."""
    guidance_rescale: Share = 0.0
    """How much guidance is kept from raising the contrast of estimated images: 0 not at all, 1 entirely."""
    negative_prompt: str = ""
    """Prompt that guidance leads away from."""
    interpolate_prompts: bool = False
    """Blend the prompts of neighbouring views, instead of using the nearest view's."""
    perp_neg: NonNegative = 0.0
    """Strength with which guidance avoids the front and side that a camera does not see; 1 as in threestudio.

    Best with interpolated prompts. It doubles the guide's evaluations per step, from two to four.
    """
    gradient: Literal["sds", "contrast"] = "sds"
    """What guidance leads away from: the negative prompt; or the base model's estimate for the prompt without
    identifier (`contrast_loss_of_z`), with adapters only and without a negative prompt and Perp-Neg."""
    weighting: Literal["sigma2", "flow"] = "sigma2"
    """How steps count by their noise: DreamFusion's sigma^2, or as in a flow's own velocity (`sds_weights`)."""
    noise_range_start: ShareInterval = (0.12, 0.93)
    """Noise levels of score distillation when a phase begins: s where the noisy z is (1 - s) z + s eps, but for its
    scale, on the schedule of any guide. Those of Stable Diffusion are 0.12 and 0.93 at t = 20 and 980."""
    noise_range_end: ShareInterval = (0.12, 0.62)
    """Noise levels when it ends; linear in between."""


class Distillation:
    """Score distillation by one guide towards one prompt, both of which may change while a NeRF is trained.

    It is a plain object, so that guide and embeddings are not part of the model, its checkpoint or the viewer's scan.
    """

    context: Callable[[], AbstractContextManager]
    """Entered while the guide computes; in training it lets the viewer render in the meantime."""
    bank: PromptBank | None
    """The embedded prompts; None if they must be embedded before the next loss."""

    def __init__(self, config: SDSConfig, prompt: str, load_guide: Callable[[], DiffusionGuide]) -> None:
        self.config, self.prompt, self._load_guide = config, prompt, load_guide
        self.context = nullcontext
        self.bank = None
        self.identifier = ""
        """The word in the prompt that is new to the base model."""
        self._base_bank: PromptBank | None = None  # Of the contrast gradient.
        self._skipped = 0

    @cached_property
    def guide(self) -> DiffusionGuide:
        """The diffusion model, loaded on first use: viewing and exporting never touch its weights."""
        return self._load_guide()

    @cached_property
    def _levels(self) -> Float[Tensor, " T"]:
        return noise_level(self.guide.alphas_cumprod).cpu()  # Once: a step waits for no copy from the GPU.

    def set_guidance(self, prompt: str, guidance_scale: float) -> None:
        """Set the prompt and the guidance scale from now on."""
        if prompt != self.prompt:
            self.bank = None
        self.prompt, self.config = prompt, replace(self.config, guidance_scale=guidance_scale)

    def embed_prompts(self) -> PromptBank:
        """Embed the prompt with the guide's present weights; call it when they change."""
        config = self.config
        self.bank = bank = PromptBank(
            self.guide, self.prompt, config.negative_prompt, config.interpolate_prompts, config.perp_neg
        )
        if config.gradient == "contrast":
            prompt = drop_identifier(self.prompt, self.identifier) if self.identifier else self.prompt
            with self.guide.untuned():
                self._base_bank = PromptBank(self.guide, prompt, interpolate=config.interpolate_prompts)
        return bank

    def loss(
        self,
        image: Float[Tensor, "b c h w"],
        views: Views,
        progress: float,
        encode: Callable[[DiffusionGuide, Tensor], Tensor],
    ) -> Float[Tensor, ""]:
        """`sds_loss_of_z` of a rendering, on the rendering's device.

        A step whose noise estimate is not finite is skipped: its loss is zero. A resumed run draws the same noise and
        skips it again.

        Args:
            views: The camera position of each image.
            progress: Fraction of the phase that is done.
            encode: Returns the guide's z of the rendering, on the guide's device.
        """
        config = self.config
        noise_range = annealed_range(progress, config.noise_range_start, config.noise_range_end)
        with self.context():
            bank = self.embed_prompts() if self.bank is None else self.bank
            z, conditioning = encode(self.guide, image), bank(views)
            t = sample_timesteps(len(z), noise_range, self._levels, device=self.guide.device)
            try:
                if self._base_bank is None:
                    loss = sds_loss_of_z(self.guide, z, conditioning, t, config)
                else:
                    against_base = Conditioning(conditioning.text, self._base_bank(views).text)
                    loss = contrast_loss_of_z(self.guide, z, against_base, t, config)
            except NonFiniteNoiseError as error:
                return self._skip(image, error)
        self._skipped = 0
        return loss.to(image.device)

    def _skip(self, image: Float[Tensor, "b c h w"], error: NonFiniteNoiseError) -> Float[Tensor, ""]:
        self._skipped += 1
        if self._skipped > MAX_SKIPPED:
            raise DivergedError(f"{self._skipped} steps in a row: {error}") from error
        announce(f"Skipped a step of the NeRF: {error}")
        return 0 * image.sum()


def sds_loss(
    guide: DiffusionGuide,
    rgb: Float[Tensor, "b 3 h w"],
    conditioning: Conditioning,
    t: Int[Tensor, " b"],
    config: SDSConfig,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """`sds_loss_of_z` of z = encode(rgb), with the factor dz / d rgb in its gradient; on any device."""
    z = guide.encode(rgb.to(guide.device))
    return sds_loss_of_z(guide, z, conditioning, t, config, generator).to(rgb.device)


def sds_loss_of_z(
    guide: DiffusionGuide,
    z: Float[Tensor, "b c h w"],
    conditioning: Conditioning,
    t: Int[Tensor, " b"],
    config: SDSConfig,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """A scalar whose gradient with respect to `z` is the score distillation gradient (2209.14988, eq. 3),

        mean over b of  w(t) (eps_hat(z_t; text, t) - eps),    with w(t) = `sds_weights`.

    The network is frozen and its Jacobian left out. The value is half the squared norm of that gradient, which is not a
    measure of progress.
    """
    with torch.no_grad():
        eps, scale = standard_noise(z.shape, z.device, generator), config.guidance_scale
        z_t = add_noise(guide, z, t, eps)
        eps_hat = guided_noise(guide, z_t, t, conditioning, scale, config.guidance_rescale)
        gradient = sds_weights(guide.abar(t), config.weighting)[:, None, None, None] * (eps_hat - eps)
        _check_finite(gradient, eps_hat, t, scale)
    return _with_gradient(z, gradient)


def contrast_loss_of_z(
    guide: DiffusionGuide,
    z: Float[Tensor, "b c h w"],
    conditioning: Conditioning,
    t: Int[Tensor, " b"],
    config: SDSConfig,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """A scalar whose gradient with respect to `z` is that of score distillation with what tuning has added enlarged,

        mean over b of  w(t) (eps_base + s (eps_tuned - eps_base) - eps),    with w(t) = `sds_weights`,

    where eps_tuned is the estimate for `conditioning.text`, and eps_base that of the same network, untuned, for
    `conditioning.uncond`. The difference alone is the personalised gradient of TextureDreamer (Yeh et al. 2024, arXiv
    2401.09416). It vanishes for no image, and colours and shapes grow without bound; the other two terms hold them.
    """
    with torch.no_grad():
        eps, scale = standard_noise(z.shape, z.device, generator), config.guidance_scale
        z_t = add_noise(guide, z, t, eps)
        tuned = guide.predict_noise(z_t, t, conditioning.text)
        with guide.untuned():
            base = guide.predict_noise(z_t, t, conditioning.uncond)
        eps_hat = base + scale * (tuned - base)
        if config.guidance_rescale:
            eps_hat = rescaled(guide, z_t, t, eps_hat, tuned, config.guidance_rescale)
        gradient = sds_weights(guide.abar(t), config.weighting)[:, None, None, None] * (eps_hat - eps)
        _check_finite(gradient, eps_hat, t, scale)
    return _with_gradient(z, gradient)


def sds_weights(abar: Float[Tensor, " b"], weighting: Literal["sigma2", "flow"]) -> Float[Tensor, " b"]:
    """w(t): sigma^2 = 1 - abar, or for "flow" 1 / (1 - s), constant above s = 0.98.

    With the latter the gradient is the difference of a flow's velocity from eps - z (RFDS, Yang et al. 2024,
    arXiv 2406.03293), or (z - z_hat) / s.
    """
    if weighting == "sigma2":
        return 1 - abar
    return 1 / (1 - noise_level(abar)).clamp(min=0.02)


def noise_level(abar: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """s, the share of noise where noisy z is (1 - s) z + s eps, but for its scale."""
    signal, noise = abar.sqrt(), (1 - abar).sqrt()
    return noise / (signal + noise)


def _with_gradient(z: Float[Tensor, "b c h w"], gradient: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Half the squared norm of the gradient as a function of z that has it, as a mean over b."""
    target = (z - gradient).detach()
    return 0.5 * (z - target).square().sum() / len(z)


def _check_finite(
    gradient: Float[Tensor, "b c h w"], eps_hat: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], guidance_scale: float
) -> None:
    if gradient.isfinite().all():
        return
    bad = ~eps_hat.isfinite().flatten(1).all(1)
    if not bad.any():
        raise FloatingPointError("The rendered image is not finite: lower the field's learning rates.")
    raise NonFiniteNoiseError(
        f"The guide's noise estimate at t = {t[bad].tolist()} is not finite (guidance scale {guidance_scale:g}). "
        "If this happens often, set the guide's dtype to float32."
    )


def sample_timesteps(
    num: int,
    noise_range: tuple[float, float],
    levels: Float[Tensor, " T"],
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Int[Tensor, " num"]:
    """Timesteps drawn uniformly from those of a schedule between two noise levels; if none is there, the next one.

    Args:
        levels: `noise_level` of every timestep of the schedule, on the CPU.
    """
    if not 0 <= noise_range[0] <= noise_range[1] <= 1:
        raise ValueError(f"The range of noise levels must satisfy 0 <= low <= high <= 1, got {noise_range}.")
    low, high = torch.searchsorted(levels, torch.tensor(noise_range)).tolist()
    low = min(low, len(levels) - 1)
    drawn_on = generator.device if generator else device
    return torch.randint(low, max(low + 1, high), (num,), generator=generator, device=drawn_on).to(device)


def annealed_range(
    progress: float, start: tuple[float, float] = (0.12, 0.93), end: tuple[float, float] = (0.12, 0.62)
) -> tuple[float, float]:
    """The range of noise levels, moved linearly from `start` to `end` while `progress` goes from 0 to 1.

    High noise decides the layout, low noise the details; annealing lets the first finish before the second.
    """
    progress = min(max(progress, 0.0), 1.0)
    low, high = (a + (b - a) * progress for a, b in zip(start, end, strict=True))
    return low, high
