"""What a model is, by its files and its configuration: recognised before any weights are read.

A model of another family, of another shape of input or in another format gets one line that says what it is and what
reads it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal, cast

from db3d_nerfstudio.errors import UserError

Family = Literal["Stable Diffusion", "SDXL", "DeepFloyd IF", "Stable Diffusion 3", "FLUX.2 klein"]
"""The models that guides are for."""
READERS: dict[str, str] = {
    "Stable Diffusion": "dreambooth3d, or the guide stable-diffusion",
    "SDXL": "dreambooth3d-sdxl, or the guide sdxl",
    "DeepFloyd IF": "dreambooth3d-if, or the guide deepfloyd",
    "Stable Diffusion 3": "dreambooth3d-sd3, or the guide sd3",
    "FLUX.2 klein": "dreambooth3d-flux2, or the guide flux2",
}
"""What reads each family."""
_PIPELINES: dict[str, Family] = {
    "StableDiffusionPipeline": "Stable Diffusion",
    "StableDiffusionXLPipeline": "SDXL",
    "IFPipeline": "DeepFloyd IF",
    "StableDiffusion3Pipeline": "Stable Diffusion 3",
    "Flux2KleinPipeline": "FLUX.2 klein",
}
"""The families by the classes of diffusers that their folders name."""
_FLOWS = ("Stable Diffusion 3", "FLUX.2 klein")
"""Those with a transformer in place of a UNet."""
_DISTILLED_CLASSES = {"FluxPipeline": "FLUX.1", "Flux2Pipeline": "FLUX.2-dev"}
_DISTILLED_NAMES = re.compile(r"(^|[-_.])(turbo|schnell|lightning|hyper)([-_.]|$)", re.IGNORECASE)
SINGLE_FILE = ".safetensors"

_FORMATS = {
    ".ckpt": "a pickle, which can run any program when it is opened: convert it to .safetensors",
    ".pt": "a pickle, which can run any program when it is opened: convert it to .safetensors",
    ".pth": "a pickle, which can run any program when it is opened: convert it to .safetensors",
    ".bin": "a pickle, which can run any program when it is opened: convert it to .safetensors",
    ".gguf": "a GGUF file, whose weights are rounded for inference alone: take the model as .safetensors",
    ".onnx": "an ONNX file, which cannot be fine-tuned: take the model as .safetensors",
    ".zip": "an archive: unpack it",
}
_CHANNELS = {
    9: "for inpainting",
    8: "for editing pictures by instructions (InstructPix2Pix)",
    7: "for enlarging pictures",
    5: "for pictures with a depth map",
    6: "a second stage that enlarges pictures",
}
_MARKS = {
    "double_blocks.": "Flux",
    "joint_blocks.": "Stable Diffusion 3",
    "control_model.": "ControlNet",
    "lora_up.weight": "LoRA",
    "lora_down.weight": "LoRA",
    "lora_A.": "LoRA",
    "lora_B.": "LoRA",
    ".hada_w1_a": "LoRA",
    "emb_params": "textual inversion",
}
"""Parts of the names of tensors that only one kind of file has."""
_UNET_ENTRY = "model.diffusion_model.input_blocks.0.0.weight"


def check_file(file: Path, family: Family) -> None:
    """Raise if a file is not a checkpoint of the family in one .safetensors file."""
    _check_format(file)
    if file.suffix.lower() != SINGLE_FILE:
        raise UserError(f"{file} is not a model: give a folder in diffusers' layout, a hub id, or a {SINGLE_FILE} file")
    tensors = read_header(file)
    found = next((kind for name in tensors for mark, kind in _MARKS.items() if mark in name), None)
    if found == "LoRA":
        raise UserError(f"{file} is a LoRA, not a whole model: give its base model, and the LoRA as personalised")
    if found is not None:
        raise UserError(f"{file} is a {found} model, which this guide does not read")
    if any(name.startswith("conditioner.embedders.") for name in tensors):
        found = "SDXL"
    elif any(name.startswith("cond_stage_model.") for name in tensors):
        found = "Stable Diffusion"
    if found is not None and found != family:
        raise UserError(f"{file} is a model of {found}: use {READERS[found]}")
    if _UNET_ENTRY in tensors:
        _check_channels(str(file), tensors[_UNET_ENTRY]["shape"][1], expected=4)


def check_adapter(file: Path) -> None:
    """Raise if a file is damaged, or no adapter but a whole model or a learned word."""
    _check_format(file)
    tensors = read_header(file)
    if any(name == _UNET_ENTRY or name.endswith("conv_in.weight") for name in tensors):
        raise UserError(f"{file} is a whole model and not an adapter: give it as the guide's model")
    if tensors and not any("." in name for name in tensors):  # Layers' names have dots, words have none.
        raise UserError(
            f"{file} is a word learned by textual inversion ({next(iter(tensors))}) and not a LoRA: give the folder of "
            "a learned_embeds.safetensors, the guide's tuning textual_inversion and its new_token"
        )


def _check_format(file: Path) -> None:
    reason = _FORMATS.get(file.suffix.lower())
    if reason is not None:
        raise UserError(f"{file} is {reason}")


def read_header(file: Path) -> dict[str, dict[str, Any]]:
    """Names, types and shapes of the tensors in a .safetensors file.

    Raises:
        UserError: it is not such a file, or is cut off.
    """
    try:
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if length > file.stat().st_size:
                raise ValueError
            tensors = json.loads(handle.read(length))
    except PermissionError:
        raise UserError(f"{file} may not be read: change its permissions") from None
    except (ValueError, OSError):
        if is_lfs_pointer(file):
            raise UserError(f"{file} is a pointer of Git LFS: run `git lfs pull`") from None
        raise UserError(f"{file} is not a {SINGLE_FILE} file, or is cut off: download it again") from None
    tensors.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    if 8 + length + end > file.stat().st_size:
        raise UserError(f"{file} is cut off: download it again")
    return tensors


def is_lfs_pointer(path: Path) -> bool:
    """Whether a path is a file that only names the one that Git LFS has yet to fetch."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(23) == b"version https://git-lfs"


def check_folder(root: Path, folders: tuple[str, ...]) -> None:
    """Raise if a folder lacks parts of a model; the message says what it is, where that can be seen."""
    missing = [folder for folder in folders if not (root / folder).is_dir()]
    if not missing:
        onnx = [folder for folder in folders if list((root / folder).glob("*.onnx"))]
        if onnx:
            raise UserError(f"{root} is an export to ONNX, which cannot be fine-tuned: take the model it was made of")
        return
    below = [
        path.parent for path in sorted(root.glob("*/model_index.json")) + sorted(root.glob("*/*/model_index.json"))
    ]
    pipeline = _pipeline_class(root)
    files = sorted(path.name for path in root.iterdir() if path.suffix.lower() in (SINGLE_FILE, *_FORMATS))
    if below:
        raise UserError(f"{root} is not a model, but {below[0]} is: give that folder")
    found = _PIPELINES.get(pipeline or "")
    if "unet" in missing and found in _FLOWS:
        raise UserError(f"{root} is a model of {found}: use {READERS[found]}")
    if pipeline is not None and found is None and not pipeline.startswith(tuple(_PIPELINES)):
        raise UserError(f"{root} is a {pipeline.removesuffix('Pipeline')} model, which this guide does not read")
    part = _class_of_part(root)
    if part is not None:
        raise UserError(f"{root} is one part of a model ({part}): give the folder of a whole model")
    if "pytorch_lora_weights.safetensors" in files or (root / "adapter_config.json").exists():
        raise UserError(f"{root} is a LoRA, not a whole model: give its base model, and the LoRA as personalised")
    if files and len(missing) == len(folders):
        raise UserError(
            f"{root} is not in diffusers' layout, but has {', '.join(files[:3])}: give a file, not the folder"
        )
    raise UserError(
        f"The guide's model {root} has no {', '.join(f'{folder}/' for folder in missing)}: "
        f"it needs diffusers' layout with {', '.join(f'{folder}/' for folder in folders)}."
    )


def _pipeline_class(root: Path) -> str | None:
    return _read(root / "model_index.json").get("_class_name")


def _read(file: Path) -> dict[str, Any]:
    """A file's JSON object; empty if there is none, or it cannot be read."""
    try:
        found: Any = json.loads(file.read_text("utf8"))
    except (OSError, ValueError):
        return {}
    return cast(dict[str, Any], found) if isinstance(found, dict) else {}


def _class_of_part(root: Path) -> str | None:
    """The class of a network that was saved by itself, such as a ControlNet."""
    config = _read(root / "config.json")
    return config.get("_class_name") or next(iter(config.get("architectures") or []), None)


def check_pipeline(source: str, index: dict[str, Any], family: Family) -> None:
    """Raise if a pipeline in diffusers' layout is of another family, or was distilled.

    Args:
        index: Its `model_index.json`; empty if it has none.
    """
    kind = index.get("_class_name", "")
    named = _DISTILLED_NAMES.search(Path(source).name) or index.get("is_distilled")
    if named or kind in _DISTILLED_CLASSES:
        what = "" if named else f" ({_DISTILLED_CLASSES[kind]})"
        raise UserError(
            f"{source}{what} is distilled: it has learned to answer without classifier-free guidance, which score "
            "distillation needs. Give the base model"
        )
    found = _PIPELINES.get(kind)
    if found is not None and found != family:
        raise UserError(f"{source} is a model of {found}: use {READERS[found]}")
    if kind and found is None:
        raise UserError(f"{source} is a {kind.removesuffix('Pipeline')} model, which this guide does not read")


def check_unet(source: str, config: dict[str, Any], family: Family, channels: int) -> None:
    """Raise if a UNet's configuration is that of another family, or of a network with other inputs.

    Args:
        channels: How many it is to take.
    """
    found = unet_family(config)
    if found != family:
        raise UserError(f"{source} is a model of {found}: use {READERS[found]}")
    _check_channels(source, config.get("in_channels", 4), channels)
    if family == "SDXL" and config.get("cross_attention_dim") == 1280:
        raise UserError(f"{source} is the refiner of SDXL: give the base model")


def unet_family(config: dict[str, Any]) -> Family:
    """The family of a UNet, by what it is conditioned on."""
    match config.get("addition_embed_type"):
        case "text_time":
            return "SDXL"
        case "text":
            return "DeepFloyd IF"
        case _:
            return "Stable Diffusion"


def _check_channels(source: str, channels: int, expected: int) -> None:
    if channels != expected:
        purpose = f", it is {_CHANNELS[channels]}" if channels in _CHANNELS else ""
        raise UserError(f"The UNet of {source} takes {channels} channels, not {expected}{purpose}: give the base model")
