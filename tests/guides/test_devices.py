"""The GPU path without a GPU: guides at their true widths on a fake device, where mixed devices and dtypes raise.

The fake device is PyTorch's "meta" in FakeTensorMode: shapes, dtypes and devices are checked as on a GPU, forwards and
backwards, and nothing is computed. One layer of each kind at its true width stands for the many. Weights are in
bfloat16, and autocast, which this device lacks, is off: what reaches a layer in another dtype fails here.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from db3d_nerfstudio.diffusion import sds
from db3d_nerfstudio.diffusion.dreambooth import Batch, DreamBoothConfig, dreambooth_loss
from db3d_nerfstudio.diffusion.guidance import Conditioning, add_noise, guided_noise
from db3d_nerfstudio.diffusion.sds import SDSConfig, sds_loss
from db3d_nerfstudio.guides.shapes import SHAPES
from db3d_nerfstudio.guides.unet.deepfloyd import DeepFloydGuideConfig
from db3d_nerfstudio.guides.unet.guide import UNetGuide
from db3d_nerfstudio.guides.unet.sdxl import SDXLGuideConfig
from db3d_nerfstudio.guides.unet.stable_diffusion import StableDiffusionGuideConfig

CONFIGS = {"sd15": StableDiffusionGuideConfig, "sdxl": SDXLGuideConfig, "if": DeepFloydGuideConfig}
TEXT = {"sd15": (77, 768), "sdxl": (78, 2048), "if": (77, 4096)}


@contextmanager
def fake_guide(family: str, **settings: Any) -> Iterator[UNetGuide]:
    """The guide as its class makes it on the fake device: what the class forgets to move stays on the CPU."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    def read_schedule(self: UNetGuide) -> None:
        self.alphas_cumprod = DDPMScheduler().alphas_cumprod.to(self.device)
        self.prediction_type = "epsilon"

    def read(self: UNetGuide, part: type, folder: str, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Any:
        unet = SHAPES[family]["unet"] | {"transformer_layers_per_block": 1}
        shape = {UNet2DConditionModel: unet, AutoencoderKL: SHAPES["sd15"]["vae"]}[part]
        with torch.device("meta"):
            return part(**shape | {"layers_per_block": 1}).to(dtype)

    with pytest.MonkeyPatch.context() as patch:
        unasked = {  # What a model is was never written down here, and fake values answer no question.
            "_checked_source": lambda self: self.config.source,
            "_read_schedule": read_schedule,
        }
        for name, answer in unasked.items():
            patch.setattr(UNetGuide, name, answer)
        patch.setattr(UNetGuide, "_read", read)
        patch.setattr(UNetGuide, "_read_tokenizer", lambda self, folder: SimpleNamespace())
        patch.setattr(UNetGuide, "_read_text_encoders", lambda self: {})
        patch.setattr(UNetGuide, "_read_config", lambda *args: {"force_zeros_for_empty_prompt": True})
        patch.setattr(sds, "_check_finite", lambda *args: None)  # A question that fake values cannot answer.
        guide = CONFIGS[family](dtype="bfloat16", device="meta", **settings).setup()
        patch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
        with FakeTensorMode(allow_non_fake_inputs=True):
            for module in guide.modules().values():
                make_fake(module)
            yield guide


def make_fake(module: nn.Module) -> None:
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                fake = torch.empty(p.shape, dtype=p.dtype, device=p.device)
                part._parameters[name] = nn.Parameter(fake, requires_grad=p.requires_grad)


def text_of(family: str, num: int = 1) -> Tensor:
    return torch.empty(num, *TEXT[family], device="meta")


def render(device: str = "meta") -> Tensor:
    """What the NeRF hands to the guide."""
    return torch.empty(1, 3, 64, 64, device=device, requires_grad=True)


def timesteps(num: int = 1) -> Tensor:
    return torch.empty(num, dtype=torch.long, device="meta")


def guidance(family: str, guide: UNetGuide) -> Tensor:
    """All of score distillation's forward pass."""
    with torch.no_grad():
        z, t, conditioning = guide.encode(render()), timesteps(), Conditioning(text_of(family), text_of(family))
        return guided_noise(guide, add_noise(guide, z, t, torch.empty_like(z)), t, conditioning, 7.5, rescale=0.5)


@pytest.mark.parametrize("family", CONFIGS)
def test_guidance_and_decoding(family: str) -> None:
    with fake_guide(family, tuning="lora") as guide:
        eps = guidance(family, guide)
        assert eps.device.type == "meta" and eps.dtype == torch.float32
        assert eps.shape[-1] == guide.unet.config.sample_size
        if family != "if":
            assert guide.decode(eps).shape == (1, 3, guide.resolution, guide.resolution)


def forget_schedule(guide: UNetGuide) -> None:
    guide.alphas_cumprod = torch.empty(1000, device="cpu")


def forget_cast(guide: UNetGuide) -> None:
    conditions = guide._conditions
    guide._conditions = lambda text: conditions(text.float())


def forget_text(guide: UNetGuide) -> None:
    conditions = guide._conditions
    guide._conditions = lambda text: conditions(text.cpu())


def forget_sizes(guide: UNetGuide) -> None:
    guide._sizes = torch.empty(1, 6, device="cpu", dtype=torch.long)


@pytest.mark.parametrize(
    ("family", "mistake", "message"),
    [
        ("sd15", forget_schedule, "device"),
        ("sd15", forget_cast, "same dtype|should be the same"),
        ("if", forget_text, "device"),
        ("if", forget_cast, "same dtype|should be the same"),
        ("sdxl", forget_sizes, "device"),
    ],
)
def test_planted_mistakes_are_found(family: str, mistake: Callable[[UNetGuide], None], message: str) -> None:
    with fake_guide(family, tuning="lora") as guide:
        mistake(guide)
        with pytest.raises(RuntimeError, match=message):
            guidance(family, guide)


@pytest.mark.parametrize("home", ["meta", "cpu"])
@pytest.mark.parametrize("family", CONFIGS)
def test_gradient_of_distillation_returns_to_the_render(family: str, home: str) -> None:
    """Even where the NeRF lives on another device than the guide."""
    with fake_guide(family, tuning="lora") as guide:
        rgb = render(home)
        loss = sds_loss(guide, rgb, Conditioning(text_of(family), text_of(family)), timesteps(), SDSConfig())
        loss.backward()
        assert loss.device.type == rgb.grad.device.type == home and rgb.grad.shape == rgb.shape


@pytest.mark.slow
@pytest.mark.parametrize(("family", "tuning"), [("sd15", "full"), ("sd15", "lora"), ("sdxl", "lora"), ("if", "lora")])
def test_one_step_of_fine_tuning(family: str, tuning: str) -> None:
    with fake_guide(family, tuning=tuning, gradient_checkpointing=family == "sdxl") as guide:
        with torch.no_grad():
            z = guide.encode(torch.empty(2, 3, 512, 512, device="meta"))
        mask = z.new_ones(2, 1, *z.shape[2:])
        text, t = text_of(family, 2), timesteps(2)
        loss = dreambooth_loss(guide, Batch(z, text, t, torch.empty_like(z), mask, 1), DreamBoothConfig())
        loss.backward()
        parameters = guide.parameters()
        assert {parameter.dtype for parameter in parameters} == {torch.float32}
        assert all(parameter.grad is not None for parameter in parameters)
        torch.optim.AdamW(parameters).step()
