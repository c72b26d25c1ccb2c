"""What the tests share: an analytic guide, and tiny random models saved in the folders that the real ones come in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from tiny_pipelines import VAE, tiny_clip_tokenizer
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import interpolate

from db3d_nerfstudio.guides.base import DiffusionGuide, DiffusionGuideConfig, digest
from db3d_nerfstudio.toybox.network import make_scheduler
from db3d_nerfstudio.toybox.sides import HINTS

WORDS = (
    "a an and at front back side overhead view photo of sks olis robot dog duck car chair mug plane house owl toy "
    "red blue green yellow purple white black orange pink brown gray wearing hat scarf with on in the sitting"
).split()


@dataclass
class GaussianGuideConfig(DiffusionGuideConfig):
    """Configuration of the analytic guide."""

    _target: type = field(default_factory=lambda: GaussianGuide)
    mean: float = 0.7
    """Mean of clean z for every prompt not in `means`; the empty prompt's is 0."""
    means: dict[str, float] = field(default_factory=dict)
    std: float = 0.1
    """Standard deviation of clean z."""
    scale: float = 1.0
    """Slope of the codec, z = scale * rgb: its Jacobian."""
    resolution: int = 8


class GaussianGuide(DiffusionGuide):
    """The perfect denoiser of z ~ N(mean(prompt) + shift, std^2): closed forms to test against, in no time.

    `shift`, a single parameter that starts at 0, is what DreamBooth moves.
    """

    dtype = torch.float32
    prediction_type = "epsilon"
    learning_rate = 1e-2

    def __init__(self, config: GaussianGuideConfig, device: torch.device | str = "cpu") -> None:
        self.config, self.device, self.resolution = config, torch.device(device), config.resolution
        self.z_shape = 3, config.resolution, config.resolution
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, device=self.device) ** 2
        self.alphas_cumprod = (1 - betas).cumprod(0)
        self.shift = Parameter(torch.zeros((), device=self.device))

    def encode(self, rgb: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hz wz"]:
        if rgb.shape[-1] != self.resolution:
            rgb = interpolate(rgb, (self.resolution, self.resolution), mode="bilinear", antialias=True)
        return rgb * self.config.scale

    def decode(self, z: Float[Tensor, "b c hz wz"]) -> Float[Tensor, "b 3 h w"]:
        return (z / self.config.scale).clamp(0, 1)

    def embed(self, prompts: list[str]) -> Float[Tensor, "b n d"]:
        means = [self.config.means.get(prompt, self.config.mean if prompt else 0.0) for prompt in prompts]
        return torch.tensor(means, device=self.device)[:, None, None]

    def predict_noise(
        self, z_t: Float[Tensor, "b c hz wz"], t: Int[Tensor, " b"], text: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b c hz wz"]:
        abar = self.alphas_cumprod[t][:, None, None, None]
        mean = text[:, :, :, None] + self.shift
        return (1 - abar).sqrt() * (z_t - abar.sqrt() * mean) / (abar * self.config.std**2 + 1 - abar)

    def parameters(self) -> list[Parameter]:
        return [self.shift]

    def save(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        save_file({"shift": self.shift.detach()}, path / "shift.safetensors")

    @torch.no_grad()
    def load(self, path: Path | None) -> None:
        self.shift.copy_(torch.zeros(()) if path is None else load_file(path / "shift.safetensors")["shift"])

    @contextmanager
    def untuned(self) -> Iterator[None]:
        shift = self.shift.detach().clone()
        self.load(None)
        yield
        self.shift.data.copy_(shift)

    def fingerprint(self) -> str:
        return digest([("shift", self.shift)])


@dataclass
class PatternGuideConfig(GaussianGuideConfig):
    """Configuration of the analytic guide whose prompts mean stripes and not shades."""

    _target: type = field(default_factory=lambda: PatternGuide)


class PatternGuide(GaussianGuide):
    """Every prompt but the empty one has its own random stripes as mean: directions that differ, and contrast."""

    def embed(self, prompts: list[str]) -> Float[Tensor, "b n d"]:
        rows = []
        for prompt in prompts:
            seed = torch.Generator().manual_seed(crc32(prompt.encode()))
            rows.append(torch.rand(3, self.resolution, generator=seed) * bool(prompt))
        return torch.stack(rows).to(self.device)


def tiny_toybox_folder(path: Path, words: Sequence[str] = WORDS, resolution: int = 16) -> Path:
    """A random toybox model of `resolution` pixels, like the shipped one: v-prediction, 4 channels to 4x4 pixels."""
    from diffusers import AutoencoderDC, UNet2DConditionModel
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*special, ",", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=20, **names).save_pretrained(
        path / "tokenizer"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text_encoder = CLIPTextModel(_text_config(CLIPTextConfig, len(vocabulary), 20, bos=1, eos=2, pad=0))
        unet = UNet2DConditionModel(sample_size=resolution // 4, in_channels=4 + HINTS, out_channels=4, **_UNET)
        vae = AutoencoderDC(**_CODEC)
    for folder, part in {"text_encoder": text_encoder, "unet": unet, "vae": vae, "scheduler": make_scheduler()}.items():
        part.save_pretrained(path / folder)
    return path


def tiny_stable_diffusion_folder(path: Path, prediction_type: str = "epsilon") -> Path:
    """A random Stable Diffusion of 16 pixels and 8x8x4 latents, saved by diffusers' own pipeline."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = tiny_clip_tokenizer(path)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text_encoder = CLIPTextModel(_text_config(CLIPTextConfig, len(tokenizer), 77, bos=bos, eos=eos, pad=eos))
        unet = UNet2DConditionModel(sample_size=8, in_channels=4, out_channels=4, **_UNET)
        vae = AutoencoderKL(**VAE)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        clip_sample=False,
        steps_offset=1,
    )
    StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    ).save_pretrained(path)
    return path


_UNET = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
_CODEC = {
    "latent_channels": 4,
    "encoder_block_out_channels": (8, 8, 16),
    "encoder_layers_per_block": (0, 1, 1),
    "encoder_qkv_multiscales": ((),) * 3,
    "decoder_block_out_channels": (8, 8, 16),
    "decoder_layers_per_block": (0, 1, 1),
    "decoder_qkv_multiscales": ((),) * 3,
    "downsample_block_type": "pixel_unshuffle",
    "upsample_block_type": "pixel_shuffle",
    "scaling_factor": 0.8,
}


def _text_config(config: type, vocabulary: int, length: int, *, bos: int, eos: int, pad: int):
    return config(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=length,
        projection_dim=16,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
    )
