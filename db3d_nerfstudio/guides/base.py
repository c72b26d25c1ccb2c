"""The protocol of guides: what a text-to-image diffusion model must offer to guide a NeRF.

A guide is a plain object and not an `nn.Module`, so that it never becomes part of a model, an optimizer or a
checkpoint. It offers primitives only. `diffusion.sds_loss`, `draw`, `translate` and `finetune` are functions over this
protocol, each written once.

Notation: `z` is what the network denoises (latents, or pixels in the network's own layout) and
`z_t = sqrt(alphas_cumprod[t]) z + sqrt(1 - alphas_cumprod[t]) eps`.

Writing a guide
---------------
A guide is one file with two classes:

* `MyGuideConfig(DiffusionGuideConfig)`, a dataclass of settings with
  `_target: type = field(default_factory=lambda: MyGuide)`; a run calls `config.setup(device=...)`.
* `MyGuide(DiffusionGuide)`, whose `__init__(self, config, device)` sets `device`, `dtype`, `resolution`, `z_shape`,
  `alphas_cumprod`, `prediction_type` and `learning_rate` (or the class does), and which has the methods `encode`,
  `decode`, `embed`, `predict_noise`, `parameters`, `save`, `load` and `fingerprint`. It may set `z_bound`,
  `tells_sides`, `sees_references`, `needs_gpu` and `can_forget`, and replace `check_prompts`, `abar`, `add_cameras`,
  `references`, `sampler`, `draw_timesteps` and `untuned`.

A preset in `method_configs/` makes it a method of `ns-train`, a line in `personalisation/choice.py` a choice of the
`db3d` commands. For a model in diffusers' layout start from `unet/guide.py` or `flow/guide.py`, which leave only the
codec and the text.

*Text* is one tensor per prompt, and only the guide interprets its rows. Others stack it, choose from it and average it
(between the prompts of neighbouring views) along its first axis, and never look at n or d. A model with further
conditions packs them as further rows, as `SDXLGuide` does with its pooled text.

*Noise.* `predict_noise` returns eps for z_t on the schedule above, at an integer t. A rectified flow is the same
diffusion, scaled, on a grid of its time s (`flow/schedule.py`). It replaces `abar`, and takes any t between two of the
grid, because its `sampler` steps there.

*Views.* A multi-view model (MVDream, Shi et al. 2023, arXiv 2308.16512) denoises the b views of a batch as groups that
see each other. The pair of classifier-free guidance is concatenated along b, so that groups stay together. Its cameras
come with the views: `add_cameras` writes them into rows of the text that `embed` left empty, for the prompt and for the
negative prompt alike. The model must tolerate timesteps that differ within a group.

*Sampling.* `sampler` names the scheduler that draws images, if DDIM does not suit, and `draw_timesteps` what DreamBooth
trains at, if not all timesteps alike.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Real
from nerfstudio.configs.base_config import InstantiateConfig
from torch import Tensor
from torch.nn import Parameter

from db3d_nerfstudio.errors import UserError

if TYPE_CHECKING:
    from db3d_nerfstudio.cameras import Views

PredictionType = Literal["epsilon", "v_prediction", "sample", "velocity"]
"""Of the noise, of v = a eps - s z (arXiv 2202.00512), of the clean z, or of a flow's velocity eps - z."""


@runtime_checkable
class Scheduler(Protocol):
    """What sampling needs of a scheduler of diffusers; their base class declares none of it."""

    @property
    def timesteps(self) -> Tensor:
        """Those of the next sampling, the noisiest first."""
        ...

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """From z_t to the next timestep's, in the result's `prev_sample`."""
        ...


@dataclass
class DiffusionGuideConfig(InstantiateConfig):
    """Configuration of a guide; `config.setup(device=...)` builds it."""

    _target: type = field(default_factory=lambda: DiffusionGuide)


class DiffusionGuide(abc.ABC):
    """A text-to-image diffusion model, reduced to what distillation, translation and DreamBooth need."""

    device: torch.device
    """Device of the networks; the methods expect their tensors there."""
    dtype: torch.dtype
    """Precision of the network. Inputs and outputs of all methods are float32 in any case."""
    resolution: int
    """Height and width in pixels of the images that the model was trained on."""
    z_shape: tuple[int, int, int]
    """Channels, height and width of z for an image of `resolution`."""
    alphas_cumprod: Float[Tensor, " T"]
    """The noise schedule, on `device`."""
    prediction_type: PredictionType
    """What the network outputs. `predict_noise` hides it; only DreamBooth's weights of timesteps depend on it."""
    z_bound: float | None = None
    """Bound on |z|, if there is one: samplers clip their estimates of the clean z to it."""
    learning_rate: float
    """A learning rate for DreamBooth that suits `parameters()`; whole networks and adapters differ widely."""
    tells_sides: bool = False
    """Whether prompts may name all of `words.DIRECTIONS`, the left side and the right; else front, side and back."""
    sees_references: bool = False
    """Whether `references` shows the model images beside the prompt."""
    needs_gpu: bool = False
    """Whether the model is so large that on a CPU a run takes days."""
    can_forget: bool = True
    """Whether training `parameters()` can change the images of other prompts, so that DreamBooth needs a prior."""

    @abc.abstractmethod
    def encode(self, rgb: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hz wz"]:
        """Image in [0, 1], resized to `resolution` where needed, to clean z. Differentiable and deterministic."""

    @abc.abstractmethod
    def decode(self, z: Float[Tensor, "b c hz wz"]) -> Float[Tensor, "b 3 h w"]:
        """Clean z to an image in [0, 1] of `resolution`."""

    @abc.abstractmethod
    def embed(self, prompts: list[str]) -> Float[Tensor, "b n d"]:
        """Text embeddings. They carry gradient only if `parameters()` includes the text encoder's."""

    @torch.no_grad()
    def check_prompts(self, prompts: list[str]) -> None:
        """Raise a UserError if there is one that `embed` cannot read; by default, by embedding them."""
        self.embed(prompts)

    @abc.abstractmethod
    def predict_noise(
        self, z_t: Float[Tensor, "b c hz wz"], t: Real[Tensor, " b"], text: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b c hz wz"]:
        """The model's estimate of the noise in `z_t`, for every prediction type of the network."""

    def abar(self, t: Real[Tensor, " b"]) -> Float[Tensor, " b"]:
        """`alphas_cumprod` at timesteps."""
        return self.alphas_cumprod[t]

    def add_cameras(self, text: Float[Tensor, "b n d"], views: Views) -> Float[Tensor, "b n d"]:
        """The text with the cameras of the views written into it; by default the text itself."""
        return text

    def references(self, rgb: Float[Tensor, "m 3 h w"]) -> AbstractContextManager[None]:
        """Within it, the guide sees these images, in [0, 1], beside the prompt, if `sees_references`."""
        raise NotImplementedError("This guide does not see reference images.")

    def draw_timesteps(self, num: int, generator: torch.Generator | None = None) -> Int[Tensor, " num"]:
        """Timesteps of a batch of DreamBooth, drawn on the generator's device; by default uniformly."""
        return torch.randint(len(self.alphas_cumprod), (num,), generator=generator).to(self.device)

    def sampler(self, steps: int) -> Scheduler:
        """A scheduler like diffusers' that draws images from estimates of the noise; by default deterministic DDIM.

        It divides the guide's schedule into `steps` that begin at its noisiest end.
        """
        from diffusers import DDIMScheduler

        abar = self.alphas_cumprod.double().cpu()
        betas = 1 - abar / torch.cat([abar.new_ones(1), abar[:-1]])
        scheduler = DDIMScheduler(
            num_train_timesteps=len(abar),
            trained_betas=betas.tolist(),
            prediction_type="epsilon",
            timestep_spacing="trailing",
            clip_sample=self.z_bound is not None,
            clip_sample_range=self.z_bound or 1.0,
        )
        scheduler.set_timesteps(steps, device=self.device)
        return scheduler

    @abc.abstractmethod
    def parameters(self) -> list[Parameter]:
        """The parameters that DreamBooth may train."""

    @abc.abstractmethod
    def save(self, path: Path) -> None:
        """Write what fine-tuning changed into the folder `path`, as safetensors in diffusers' layout."""

    @abc.abstractmethod
    def load(self, path: Path | None) -> None:
        """Load what `save` wrote in place of the present weights; None restores the base model exactly."""

    def untuned(self) -> AbstractContextManager[None]:
        """Within it, the guide answers as its base model, whatever is loaded.

        Raises:
            UserError: What DreamBooth moves cannot be switched off.
        """
        raise UserError("This guide's tuning cannot be switched off: set --pipeline.model.sds.gradient sds")

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """A short digest of the weights in use, equal only for equal models. Caches of their output are keyed by it."""


def digest(named_tensors: Iterable[tuple[str, Tensor]], samples: int = 512) -> str:
    """Hash names, shapes and about `samples` strided values of each tensor: cheap, and the same on every device."""
    result = sha256()
    for name, tensor in named_tensors:
        values = tensor.detach().flatten()
        values = values[:: max(1, len(values) // samples)].to("cpu", torch.float32)
        result.update(f"{name}{tuple(tensor.shape)}".encode())
        result.update(values.numpy().tobytes())
    return result.hexdigest()[:16]
