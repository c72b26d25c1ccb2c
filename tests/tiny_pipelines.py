"""Tiny random pipelines of the larger families, saved by diffusers in the folders that the real ones come in."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

VAE = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 16,
}
"""A codec from 16 pixels to 8 x 8 latents."""
LETTERS = [chr(i) for i in range(33, 127)]


def tiny_clip_tokenizer(path: Path):
    """A CLIP tokenizer of single letters; `path` is a folder for its files."""
    from transformers import CLIPTokenizer

    tokens = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    path.mkdir(parents=True, exist_ok=True)
    (path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(path / "vocab.json"), str(path / "merges.txt"), model_max_length=77)


def tiny_sdxl_folder(path: Path) -> Path:
    """A random Stable Diffusion XL of 16 pixels and 8x8x4 latents; its two text encoders are 16 and 32 wide."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = tiny_clip_tokenizer(path)
    ids = {"bos_token_id": 188, "eos_token_id": 189, "pad_token_id": 189}
    common = {"vocab_size": 190, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, **ids}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = CLIPTextModel(CLIPTextConfig(hidden_size=16, projection_dim=16, **common))
        second = CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=32, projection_dim=24, **common))
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 2),
            projection_class_embeddings_input_dim=6 * 8 + 24,
            cross_attention_dim=48,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(**VAE, scaling_factor=0.13025)
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = EulerDiscreteScheduler(prediction_type="epsilon", timestep_spacing="leading", steps_offset=1, **betas)
    pipeline = StableDiffusionXLPipeline(vae, first, second, tokenizer, tokenizer, unet, scheduler)
    pipeline.save_pretrained(path)
    return path


def tiny_t5_tokenizer():
    """A tokenizer of single letters that ends like T5's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "</s>", "<unk>", *LETTERS]
    words = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def tiny_if_folder(path: Path, stage: int = 1) -> Path:
    """A random DeepFloyd IF of 16 pixels: T5, attention with added keys, a learned variance, thresholding.

    Stage 2 makes images of 32 pixels of smaller ones.
    """
    from diffusers import DDPMScheduler, IFPipeline, IFSuperResolutionPipeline, UNet2DConditionModel
    from transformers import T5Config, T5EncoderModel

    tokenizer = tiny_t5_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text_encoder = T5EncoderModel(
            T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        )
        unet = UNet2DConditionModel(
            sample_size=16 * stage,
            in_channels=3 * stage,
            out_channels=6,
            class_embed_type="timestep" if stage == 2 else None,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            cross_attention_dim=32,
            encoder_hid_dim=32,
            attention_head_dim=8,
            addition_embed_type="text",
            addition_embed_type_num_heads=2,
            cross_attention_norm="group_norm",
            resnet_time_scale_shift="scale_shift",
            act_fn="gelu",
        )
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5,
    )
    rest = (None, None, None, False)
    if stage == 2:
        noising = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
        pipeline = IFSuperResolutionPipeline(tokenizer, text_encoder, unet, scheduler, noising, *rest)
    else:
        pipeline = IFPipeline(tokenizer, text_encoder, unet, scheduler, *rest)
    pipeline.save_pretrained(path)
    return path


def tiny_sd3_folder(path: Path) -> Path:
    """A random Stable Diffusion 3 of 8x8x4 latents, two pixels wide each; dual attention as in 3.5, shift 3."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    clip_tokenizer, t5_tokenizer = tiny_clip_tokenizer(path), tiny_t5_tokenizer()
    ids = {"bos_token_id": 188, "eos_token_id": 189, "pad_token_id": 189}
    common = {"vocab_size": 190, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, **ids}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=16, projection_dim=16, **common))
        second = CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=32, projection_dim=24, **common))
        third = T5EncoderModel(
            T5Config(vocab_size=len(t5_tokenizer), d_model=64, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        )
        transformer = SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=64,
            caption_projection_dim=16,
            pooled_projection_dim=16 + 24,
            pos_embed_max_size=8,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    StableDiffusion3Pipeline(
        transformer,
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae,
        first,
        clip_tokenizer,
        second,
        clip_tokenizer,
        third,
        t5_tokenizer,
    ).save_pretrained(path)
    return path


def tiny_flux2_folder(path: Path) -> Path:
    """A random FLUX.2 klein of 16 pixels and 4x4x16 latents in patches, with a shift that depends on the resolution."""
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = tiny_t5_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text_encoder = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=28,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
            )
        )
        transformer = Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * 16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        )
        vae = AutoencoderKLFlux2(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
        )
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 2.0)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    Flux2KleinPipeline(scheduler, vae, text_encoder, tokenizer, transformer).save_pretrained(path)
    return path


def single_file(folder: Path, file: Path) -> Path:
    """The tiny Stable Diffusion in `folder` as one checkpoint in the original layout (CompVis's names of tensors)."""
    from safetensors.torch import load_file, save_file

    tensors = {}
    for part, prefix, rules in (
        ("unet", "model.diffusion_model.", _UNET_NAMES),
        ("vae", "first_stage_model.", _VAE_NAMES),
        ("text_encoder", "cond_stage_model.transformer.", [(r"^(?!text_model)", "text_model.")]),
    ):
        (weights,) = (folder / part).glob("*.safetensors")
        for name, tensor in load_file(weights).items():
            for pattern, replacement in rules:
                name = re.sub(pattern, replacement, name)
            tensors[prefix + name] = tensor
    save_file(tensors, file)
    return file


# Two levels of one layer each: input and output blocks come in pairs.
_UNET_NAMES = [
    (r"^time_embedding\.linear_1", "time_embed.0"),
    (r"^time_embedding\.linear_2", "time_embed.2"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    (r"^down_blocks\.(\d)\.resnets\.0", lambda m: f"input_blocks.{1 + 2 * int(m[1])}.0"),
    (r"^down_blocks\.(\d)\.attentions\.0", lambda m: f"input_blocks.{1 + 2 * int(m[1])}.1"),
    (r"^down_blocks\.(\d)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{2 + 2 * int(m[1])}.0.op"),
    (r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.0"),
    (r"^up_blocks\.(\d)\.attentions\.(\d)", lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.1"),
    (r"^up_blocks\.0\.upsamplers\.0", "output_blocks.1.2"),
    (r"\.norm1\.(weight|bias)$", lambda m: m[0] if "transformer" in m.string else f".in_layers.0.{m[1]}"),
    (r"\.norm2\.(weight|bias)$", lambda m: m[0] if "transformer" in m.string else f".out_layers.0.{m[1]}"),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.conv_shortcut\.", ".skip_connection."),
]
_VAE_NAMES = [
    (r"\.down_blocks\.(\d)\.resnets\.(\d)", r".down.\1.block.\2"),
    (r"\.down_blocks\.(\d)\.downsamplers\.0", r".down.\1.downsample"),
    (r"\.up_blocks\.(\d)\.resnets\.(\d)", lambda m: f".up.{1 - int(m[1])}.block.{m[2]}"),
    (r"\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f".up.{1 - int(m[1])}.upsample"),
    (r"\.mid_block\.resnets\.(\d)", lambda m: f".mid.block_{1 + int(m[1])}"),
    (r"\.mid_block\.attentions\.0", ".mid.attn_1"),
    (r"conv_norm_out", "norm_out"),
    (r"attn_1\.group_norm", "attn_1.norm"),
    (r"attn_1\.to_(q|k|v)\.", r"attn_1.\1."),
    (r"attn_1\.to_out\.0", "attn_1.proj_out"),
    (r"conv_shortcut", "nin_shortcut"),
]
