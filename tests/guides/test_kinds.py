"""Models that are not what a guide reads, and what is said about them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.kinds import check_file, check_folder, check_pipeline, check_unet

FOLDERS = ("unet", "text_encoder", "tokenizer", "scheduler", "vae")
ENTRY = "model.diffusion_model.input_blocks.0.0.weight"
TEXT = "cond_stage_model.transformer.x"


def file_of(path: Path, **shapes: tuple[int, ...]) -> Path:
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    return path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v1-5.ckpt", "a pickle.*convert it to .safetensors"),
        ("model.PT", "a pickle"),
        ("flux-Q4.gguf", "GGUF.*take the model as .safetensors"),
        ("model.onnx", "ONNX"),
        ("model.zip", "unpack it"),
        ("readme.txt", "is not a model: give a folder"),
        ("empty.safetensors", "not a .safetensors file, or is cut off"),
        ("EMPTY.SAFETENSORS", "not a .safetensors file, or is cut off"),
    ],
)
def test_files_in_other_formats(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"{name} is .*{said}|{name} {said}"):
        check_file(tmp_path / name, "Stable Diffusion")


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"conditioner.embedders.0.x": (1,)}, "a model of SDXL: use dreambooth3d-sdxl, or the guide sdxl"),
        ({"model.diffusion_model.joint_blocks.0.x": (1,)}, "Stable Diffusion 3"),
        ({"double_blocks.0.x": (1,)}, "Flux"),
        ({"lora_unet_down_blocks_0.lora_down.weight": (1,)}, "a LoRA, not a whole model"),
        ({"unet.to_k.lora_A.weight": (1,)}, "a LoRA, not a whole model"),
        ({TEXT: (1,), ENTRY: (320, 9, 3, 3)}, "takes 9 channels, not 4, it is for inpainting"),
        ({TEXT: (1,), ENTRY: (320, 8, 3, 3)}, "takes 8 channels.*InstructPix2Pix"),
    ],
)
def test_single_files_of_other_models(tmp_path: Path, tensors: dict, said: str) -> None:
    file = file_of(tmp_path / "a.safetensors", **tensors)
    with pytest.raises(UserError, match=f"a.safetensors.*{said}"):
        check_file(file, "Stable Diffusion")


def test_a_single_file_of_the_family_passes_unless_it_is_cut_off(tmp_path: Path) -> None:
    file = file_of(tmp_path / "a.safetensors", **{TEXT: (1,), ENTRY: (320, 4, 3, 3)})
    check_file(file, "Stable Diffusion")
    with pytest.raises(UserError, match="a model of Stable Diffusion: use dreambooth3d, or"):
        check_file(file, "SDXL")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="a.safetensors is cut off: download it again"):
        check_file(file, "Stable Diffusion")


@pytest.mark.parametrize(
    ("config", "family", "said"),
    [
        ({"addition_embed_type": "text_time"}, "Stable Diffusion", "a model of SDXL: use dreambooth3d-sdxl"),
        ({"addition_embed_type": "text"}, "Stable Diffusion", "a model of DeepFloyd IF: use dreambooth3d-if"),
        ({}, "SDXL", "a model of Stable Diffusion: use dreambooth3d, or the guide stable-diffusion"),
        ({"in_channels": 9}, "Stable Diffusion", "9 channels, not 4, it is for inpainting: give the base model"),
        ({"in_channels": 12}, "Stable Diffusion", "12 channels, not 4: give"),
        ({"in_channels": 6, "addition_embed_type": "text"}, "DeepFloyd IF", "a second stage"),
        ({"addition_embed_type": "text_time", "cross_attention_dim": 1280}, "SDXL", "the refiner"),
    ],
)
def test_unets_of_other_models(config: dict, family: str, said: str) -> None:
    with pytest.raises(UserError, match=f"some/model .*{said}|of some/model .*{said}"):
        check_unet("some/model", config, family, 3 if family == "DeepFloyd IF" else 4)


@pytest.mark.parametrize(
    ("source", "index", "said"),
    [
        ("stabilityai/stable-diffusion-3.5-large-turbo", {"_class_name": "StableDiffusion3Pipeline"}, "is distilled"),
        ("some/sd3-schnell", {}, "is distilled: .* without classifier-free guidance.* Give the base model"),
        ("some/model", {"_class_name": "StableDiffusion3Pipeline", "is_distilled": True}, "is distilled"),
        ("some/model", {"_class_name": "Flux2KleinPipeline"}, "a model of FLUX.2 klein: use dreambooth3d-flux2"),
        ("some/model", {"_class_name": "Flux2Pipeline"}, r"\(FLUX.2-dev\) is distilled"),
        ("some/model", {"_class_name": "FluxPipeline"}, r"\(FLUX.1\) is distilled"),
        ("some/model", {"_class_name": "StableDiffusionXLPipeline"}, "a model of SDXL: use dreambooth3d-sdxl"),
        ("some/model", {"_class_name": "SanaPipeline"}, "is a Sana model, which this guide does not read"),
    ],
)
def test_pipelines_that_a_flow_does_not_read(source: str, index: dict, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        check_pipeline(source, index, "Stable Diffusion 3")
    assert "\n" not in str(caught.value)


def test_pipelines_of_the_family_pass() -> None:
    check_pipeline("some/sd3-of-turbos", {"_class_name": "StableDiffusion3Pipeline"}, "Stable Diffusion 3")
    check_pipeline("some/model", {}, "Stable Diffusion 3")


def test_a_pointer_of_git_lfs_is_no_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\n")
    with pytest.raises(UserError, match="model.safetensors is a pointer of Git LFS: run `git lfs pull`"):
        check_file(tmp_path / "model.safetensors", "Stable Diffusion")


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    def said() -> str:
        with pytest.raises(UserError) as error:
            check_folder(tmp_path, FOLDERS)
        return str(error.value)

    assert "has no unet/, text_encoder/, tokenizer/, scheduler/, vae/" in said()
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "ControlNetModel"}))
    assert "is one part of a model (ControlNetModel): give the folder of a whole model" in said()
    (tmp_path / "config.json").write_text("[]")
    (tmp_path / "v1-5.ckpt").touch()
    assert "not in diffusers' layout, but has v1-5.ckpt: give a file" in said()
    (tmp_path / "pytorch_lora_weights.safetensors").touch()
    assert "is a LoRA, not a whole model" in said()
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyPipeline"}))
    assert "is a Kandinsky model, which this guide does not read" in said()
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline"}))
    assert "is a model of Stable Diffusion 3: use dreambooth3d-sd3, or the guide sd3" in said()
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").touch()
    assert f"is not a model, but {snapshot} is: give that folder" in said()
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
    check_folder(tmp_path, FOLDERS)
    (tmp_path / "unet" / "model.onnx").touch()
    assert "is an export to ONNX" in said()
