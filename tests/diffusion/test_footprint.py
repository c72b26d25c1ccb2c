"""The memory of the presets' guides is within what a card of 24 GB has, counted at the true widths of their models."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Literal

import pytest
import torch
from tiny import tiny_stable_diffusion_folder
from tiny_pipelines import tiny_if_folder, tiny_sd3_folder

from db3d_nerfstudio.diffusion.dreambooth import DreamBoothConfig
from db3d_nerfstudio.diffusion.footprint import RESERVE, Footprint, Work, check_fits, footprint
from db3d_nerfstudio.diffusion.guidance import Conditioning
from db3d_nerfstudio.diffusion.sampling import TranslationConfig, translate
from db3d_nerfstudio.diffusion.upscaler import UpscalerConfig
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.counting import GIB
from db3d_nerfstudio.guides.flow.flux2 import Flux2GuideConfig
from db3d_nerfstudio.guides.flow.sd3 import SD3GuideConfig
from db3d_nerfstudio.guides.shapes import SHAPES, Shapes
from db3d_nerfstudio.guides.skeleton import skeleton
from db3d_nerfstudio.guides.unet.stable_diffusion import StableDiffusionGuideConfig

UNET, TEXT, VAE, LORA = 859_520_964, 123_060_480, 83_653_863, 797_184
"""Parameters of Stable Diffusion 1.5, and of adapters of rank 4 on its attention layers."""
SMALL: Shapes = {
    "unet": {
        "sample_size": 16,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 8,
    },
    "vae": {**SHAPES["sd15"]["vae"], "block_out_channels": (32,) * 4},
    "text_encoder": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1},
}


def small(work: Work | None = None, **settings: object) -> Footprint:
    return footprint(StableDiffusionGuideConfig(**settings), torch.bfloat16, work, SMALL)


@pytest.mark.slow
def test_stable_diffusion_is_counted_to_the_parameter() -> None:
    full = footprint(StableDiffusionGuideConfig(), torch.bfloat16, shapes=SHAPES["sd15"])
    assert full.weights == pytest.approx(4 * (UNET + TEXT + VAE), rel=1e-3)
    assert full.training == pytest.approx(12 * UNET, rel=1e-3)
    assert full.kept / GIB == pytest.approx(6.2, abs=0.1), "an earlier count of the same network, by other means"
    lora = footprint(StableDiffusionGuideConfig(tuning="lora"), torch.bfloat16, shapes=SHAPES["sd15"])
    # Blocks of 512 bytes add up over the 256 small tensors of the adapters, their gradients, moments and step counters.
    assert lora.training == pytest.approx(12 * LORA, rel=3e-2)
    assert lora.weights == pytest.approx(2 * UNET + 4 * (TEXT + VAE + LORA), rel=1e-2)


@pytest.mark.slow
def test_every_choice_that_saves_or_costs_memory_is_counted() -> None:
    base = small()
    moments = base.training // 3 * 2
    assert small(tuning="lora").training < base.training / 10
    assert small(tuning="textual_inversion").training < base.training / 100
    assert small(train_text_encoder=True).training > base.training
    assert small(gradient_checkpointing=True).kept < base.kept / 2
    assert small(text_encoder_memory="free").weights < base.weights
    assert small(vae_dtype="bfloat16").weights < base.weights
    eight_bits = small(Work(DreamBoothConfig(optimizer="adamw8bit")))
    assert base.training - eight_bits.training == pytest.approx(moments * 3 / 4, rel=0.1)
    averaged = small(Work(DreamBoothConfig(ema_decay=0.9)))
    assert averaged.training - base.training == pytest.approx(moments / 2, rel=0.1)
    assert small(Work(DreamBoothConfig(batch_size=8))).kept > 2 * base.kept
    without_prior = small(Work(DreamBoothConfig(prior_loss_weight=0.0)))
    assert without_prior.kept < base.kept and "class images" not in without_prior.tasks
    assert small(Work(views=4)).tasks["score distillation"] > base.tasks["score distillation"]
    assert small(Work(nerf=5)).tasks["score distillation"] == base.tasks["score distillation"] + 5
    assert small(Work(perp_neg=True)).tasks["score distillation"] >= base.tasks["score distillation"]
    assert small(Work(chunk=16)).tasks["translation"] > base.tasks["translation"]
    assert "fine-tuning" not in small(Work(tuned=False)).tasks
    assert base.peak == max(base.tasks.values()) + RESERVE


@pytest.mark.slow
def test_the_upscaler_of_pseudo_views_is_counted_beside_the_guide(tmp_path: Path) -> None:
    model = str(tiny_if_folder(tmp_path, stage=2))
    base = small(text_encoder_memory="free")
    drawn = small(Work(upscaler=UpscalerConfig(model=model)), text_encoder_memory="free")
    assert drawn.tasks.keys() - base.tasks.keys() == {"reading prompts for upscaling", "upscaling"}
    networks = sum(file.stat().st_size for file in tmp_path.glob("unet/*.safetensors")) // 2
    assert drawn.tasks["upscaling"] > base.weights + networks, "in half precision"
    tuned = small(Work(upscaler=UpscalerConfig(model=model, tuning="full", max_train_steps=1)))
    assert tuned.tasks["tuning the upscaler"] > base.weights + 2 * 4 * networks, "weights, gradients and moments"
    more = small(Work(chunk=16, upscaler=UpscalerConfig(model=model)), text_encoder_memory="free")
    assert more.tasks["upscaling"] > drawn.tasks["upscaling"]


def test_pictures_are_decoded_one_by_one() -> None:
    one, many = small(Work(chunk=1)), small(Work(chunk=8))
    growth = many.tasks["translation"] - one.tasks["translation"]
    picture = 128 * 128 * 32 * 4
    assert growth < 7 * picture, "less than what a single layer of the VAE puts out for seven more pictures"


def test_the_line_says_what_to_change() -> None:
    config, work = StableDiffusionGuideConfig(), Work()
    needed = small()
    line = check_fits(config, torch.bfloat16, 80 * GIB, work, SMALL)
    assert "The guide needs about" in line and "80.0 GiB are free" in line and "--" not in line
    line = check_fits(config, torch.bfloat16, needed.peak - 1, work, SMALL)
    assert "--pipeline.model.guide.gradient-checkpointing True" in line and "\n" not in line
    with pytest.raises(UserError, match="smaller model"):
        check_fits(config, torch.bfloat16, 2**20, work, SMALL)


def test_shapes_come_from_a_models_configuration(tmp_path: Path) -> None:
    config = StableDiffusionGuideConfig(model=str(tiny_stable_diffusion_folder(tmp_path)), tuning="lora", lora_rank=3)
    guide = config.setup()
    for weights in tmp_path.glob("*/*.safetensors"):
        weights.unlink()
    counted = skeleton(config).setup()
    shapes = [p.shape for p in guide.parameters()]
    assert [p.shape for p in counted.parameters()] == shapes
    assert footprint(config, torch.float32).weights > 0


def test_a_prompt_may_be_read_without_t5() -> None:
    """Where nothing else saves memory: encoders are freed as it is, which is more than to offload them."""
    clip = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 1}
    shapes: Shapes = {
        "transformer": {
            "num_layers": 1,
            "num_attention_heads": 1,
            "caption_projection_dim": 64,
            "pooled_projection_dim": 32,
        },
        "vae": {**SHAPES["sd3"]["vae"], "block_out_channels": (32,) * 4},
        "text_encoder": {**clip, "projection_dim": 16},
        "text_encoder_2": {**clip, "projection_dim": 16},
        "text_encoder_3": {**SHAPES["sd3"]["text_encoder_3"], "num_layers": 1},
    }
    config = SD3GuideConfig(
        resolution=64, gradient_checkpointing=True, text_encoder_memory="free", vae_dtype="bfloat16"
    )
    needed = footprint(config, torch.bfloat16, None, shapes)
    line = check_fits(config, torch.bfloat16, needed.peak - 1, Work(), shapes)
    assert line.endswith("GiB.") and "Set --pipeline.model.guide.t5 False: that takes" in line


def test_references_are_counted_where_the_guide_sees_them() -> None:
    shapes: Shapes = {
        "transformer": {
            "in_channels": 128,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_attention_heads": 2,
            "joint_attention_dim": 3 * 32,
            "guidance_embeds": False,
        },
        "vae": {"block_out_channels": (32,) * 4},
        "text_encoder": {
            "vocab_size": 100,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 28,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
        },
    }
    without, shown = (
        footprint(Flux2GuideConfig(resolution=256), torch.bfloat16, Work(references=num, tuned=False), shapes)
        for num in (0, 6)
    )
    assert shown.tasks["translation"] > without.tasks["translation"]
    assert shown.tasks["score distillation"] == without.tasks["score distillation"]


@pytest.mark.parametrize("memory", ["keep", "free"])
def test_shapes_of_transformers_come_from_their_configuration(tmp_path: Path, memory: Literal["keep", "free"]) -> None:
    config = SD3GuideConfig(model=str(tiny_sd3_folder(tmp_path)), resolution=16, text_encoder_memory=memory)
    counted = skeleton(config).setup()
    parameters = {name: sum(p.numel() for p in module.parameters()) for name, module in counted.modules().items()}
    real = config.setup()
    assert parameters == {name: sum(p.numel() for p in m.parameters()) for name, m in real.modules().items()}
    line = check_fits(config, torch.bfloat16, 80 * GIB, Work())
    assert "The guide needs about 1.2 GiB" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "preset", "bar"),
    [
        ("sd15", "dreambooth3d", 20.0),
        ("sdxl", "dreambooth3d_sdxl", 22.0),
        ("if", "dreambooth3d_if", 22.0),
        ("sd3", "dreambooth3d_sd3", 22.0),
        ("flux2", "dreambooth3d_flux2", 22.0),
    ],
)
def test_presets_fit_a_card_of_24_gb(family: str, preset: str, bar: float) -> None:
    from db3d_nerfstudio.training.machine import work_of

    pipeline = import_module(f"db3d_nerfstudio.method_configs.{preset}").method.config.pipeline
    work = work_of(pipeline.phases, pipeline.model, pipeline.datamanager)
    needed = footprint(replace(pipeline.model.guide), torch.bfloat16, work, SHAPES[family])
    assert needed.peak / GIB < bar
    if family in ANOTHER_COUNT:
        task, count = ANOTHER_COUNT[family]
        assert needed.tasks[task] == pytest.approx(
            count() + (work.nerf if task == "score distillation" else 0), rel=0.1
        )


def parameters_of(kind: type, arguments: dict) -> int:
    """Number of parameters of a network that is never made."""
    with torch.device("meta"):
        network = kind(kind.config_class(**arguments)) if hasattr(kind, "config_class") else kind.from_config(arguments)
    return sum(p.numel() for p in network.parameters())


def a_step_of_full_tuning() -> float:
    """Of Stable Diffusion and its text encoder: weight, gradient and two moments; with checkpoints little else."""
    return 16 * (UNET + TEXT) + 4 * VAE


def a_view_through_the_vae() -> float:
    """Of SDXL: PyTorch's tracker follows the encoder forwards and, on a fake CPU, truly backwards."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    with FakeTensorMode(allow_non_fake_inputs=True):
        vae, tracker = AutoencoderKL.from_config(SHAPES["sdxl"]["vae"]).eval(), MemTracker()
        vae.enable_gradient_checkpointing()
        rgb = torch.empty(1, 3, 1024, 1024, requires_grad=True)
        tracker.track_external(vae, rgb)
        with tracker:
            vae.encode(rgb).latent_dist.mode().sum().backward()
        (peak,) = tracker.get_tracker_snapshot("peak").values()
    unet = parameters_of(UNet2DConditionModel, dict(SHAPES["sdxl"]["unet"]))
    return 2 * unet + 4 * VAE + peak["Activation"] + peak["Temp"]


def the_words_of_if() -> float:
    """T5 beside the UNet, 2 bytes for each parameter."""
    from diffusers import UNet2DConditionModel
    from transformers import T5EncoderModel

    unet = parameters_of(UNet2DConditionModel, dict(SHAPES["if"]["unet"]))
    return 2 * (unet + parameters_of(T5EncoderModel, dict(SHAPES["if"]["text_encoder"])))


ANOTHER_COUNT = {
    "sd15": ("fine-tuning", a_step_of_full_tuning),
    "sdxl": ("score distillation", a_view_through_the_vae),
    "if": ("reading prompts", the_words_of_if),
}
"""The task that takes most in three presets, and what it takes by a count without `guides.counting`."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "config"),
    [
        (tiny_stable_diffusion_folder, StableDiffusionGuideConfig()),
        (tiny_sd3_folder, SD3GuideConfig(resolution=16)),
    ],
)
def test_a_guide_without_weights_draws(make, config, tmp_path: Path) -> None:
    guide = skeleton(replace(config, model=str(make(tmp_path)))).setup(device="cpu")
    drawn = translate(guide, torch.rand(1, 3, 16, 16), Conditioning.of(guide, ["a"]), TranslationConfig(steps=2))
    assert drawn.isfinite().all()
