"""Files of low-rank adapters: written so that every reader applies them at one strength, read whoever wrote them.

Readers differ in where they look for the strength lora_alpha / rank: diffusers in the file's metadata, ComfyUI and
kohya's scripts in a tensor beside each layer's, and peft in another file. So files written here have it multiplied into
the weights, and lora_alpha = rank, which is what each of them takes where it finds nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from torch import Tensor

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.kinds import check_adapter

if TYPE_CHECKING:
    from peft import LoraConfig

    from db3d_nerfstudio.guides.tuning.base import Network

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_METADATA_KEY = "lora_adapter_metadata"
_UP = (".lora_up.weight", ".lora.up.weight", "_lora.up.weight", ".lora_linear_layer.up.weight", ".lora_B.weight")
_DOWN = (
    ".lora_down.weight",
    ".lora.down.weight",
    "_lora.down.weight",
    ".lora_linear_layer.down.weight",
    ".lora_A.weight",
)
_NETWORKS = ("unet.", "transformer.")
_KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
_KOHYA_SDXL = (
    *("lora_te1_", "lora_te2_"),
    *("lora_unet_input_blocks_", "lora_unet_middle_block_", "lora_unet_output_blocks_"),
)
_SDXL_BLOCKS = SimpleNamespace(layers_per_block=2)
"""What tells the blocks of SDXL's UNet under kohya's names."""


class Adapter(NamedTuple):
    """An adapter of strength 1."""

    layers: dict[str, Tensor]
    """Both matrices of each layer, "unet.LAYER.lora_A.weight" and "unet.LAYER.lora_B.weight"; of "transformer" in its
    place, and of "text_encoder" too."""
    base: str | None
    """The model it was made for, if the file says so."""
    for_sdxl: bool
    """Whether its layers have kohya's names of those of SDXL."""

    @property
    def rank(self) -> int:
        """The largest rank of its layers."""
        return max(tensor.shape[0] for name, tensor in self.layers.items() if name.endswith(".lora_A.weight"))

    @property
    def targets(self) -> tuple[str, ...]:
        """The layers of the UNet or transformer that it changes."""
        names = (name.removesuffix(".lora_A.weight") for name in self.layers if name.endswith(".lora_A.weight"))
        return tuple(sorted(name.partition(".")[2] for name in names if name.startswith(_NETWORKS)))

    @property
    def has_text(self) -> bool:
        """Whether it changes a text encoder."""
        return any(name.startswith("text_encoder") for name in self.layers)


def adapter_file(path: Path) -> Path | None:
    """The file of the adapter that a folder holds, or a file is; None for anything else."""
    if path.is_file():
        return path
    for name in (ADAPTER_FILE, PEFT_FILE):
        if (path / name).is_file():
            return path / name
    files = [file for file in sorted(path.glob("*.safetensors")) if file.name != "learned_embeds.safetensors"]
    if len(files) > 1:
        raise UserError(f"{path} holds several adapters ({', '.join(file.name for file in files)}): name one of them")
    return files[0] if files else None


def read_adapter(path: Path, unet_config: Any = None) -> Adapter:
    """An adapter by its folder or file, of diffusers, peft, kohya's scripts, or of this package.

    Args:
        unet_config: The UNet's configuration, by which blocks of SDXL are found under kohya's names; by default SDXL's.

    Raises:
        UserError: there is none, or one of another method than LoRA.
    """
    from safetensors import safe_open

    file = adapter_file(path)
    if file is None:
        raise UserError(f"{path} holds no {ADAPTER_FILE}: it was saved with another tuning than lora")
    check_adapter(file)
    with safe_open(file, "pt") as opened:
        tensors = {key: opened.get_tensor(key).float() for key in opened.keys()}  # noqa: SIM118  (not a dict)
        settings = _settings((opened.metadata() or {}).get(_METADATA_KEY, "{}"), file)
    odd = [key for key in tensors if not key.endswith((*_UP, *_DOWN, ".alpha"))]
    if odd or any(value for key, value in settings.items() if key.endswith("use_dora")):
        raise UserError(
            f"{file} is not a plain LoRA (it has {odd[0] if odd else 'DoRA'}): train one without LyCORIS or DoRA"
        )
    for_sdxl = any(key.startswith(_KOHYA_SDXL) for key in tensors)
    tensors = _folded(tensors)
    config = file.parent / PEFT_CONFIG
    if file.name == PEFT_FILE and config.is_file():
        settings = {f"unet.{key}": value for key, value in _settings(config.read_text("utf8"), config).items()}
    layers = _renamed(tensors, unet_config)
    _check_pairs(file, layers)
    for name in layers:
        if name.endswith(".lora_B.weight"):
            layers[name] = layers[name] * _strength(settings, name, layers[name].shape[1])
    bases = (settings.get(f"{network}base_model_name_or_path") for network in _NETWORKS)
    return Adapter(layers, next(filter(None, bases), None), for_sdxl)


def _settings(text: str, file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise UserError(f"the settings of the adapter in {file} cannot be read ({error}): download it again") from None


def _check_pairs(file: Path, layers: dict[str, Tensor]) -> None:
    """Raise unless every layer has both matrices, of finite numbers."""
    swapped = {".lora_A.weight": ".lora_B.weight", ".lora_B.weight": ".lora_A.weight"}
    odd = [name for name in layers if name[:-14] + swapped.get(name[-14:], "?") not in layers]
    if odd or not layers:
        reason = f"{odd[0]} has no counterpart" if odd else "it is empty"
        raise UserError(f"{file} is not a whole LoRA ({reason}): download it again")
    broken = next((name for name, tensor in layers.items() if not tensor.isfinite().all()), None)
    if broken is not None:
        raise UserError(f"{file} has values in {broken} that are not finite: its training went wrong, take another")


def _folded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without those of alphas, which are multiplied into the layers that they belong to."""
    result = {key: value for key, value in tensors.items() if not key.endswith(".alpha")}
    for key in tensors.keys() - result.keys():
        layer = key.removesuffix(".alpha")
        up = next((layer + end for end in _UP if layer + end in result), None)
        if up is not None:
            result[up] = result[up] * (tensors[key].item() / result[up].shape[1])
    return result


def _renamed(tensors: dict[str, Tensor], unet_config: Any) -> dict[str, Tensor]:
    from diffusers.loaders import StableDiffusionLoraLoaderMixin
    from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft

    if all(key.startswith(_KOHYA) for key in tensors):
        tensors = StableDiffusionLoraLoaderMixin.lora_state_dict(tensors, unet_config=unet_config or _SDXL_BLOCKS)[0]
    named = {}
    for key, value in tensors.items():
        key = key.removeprefix("base_model.model.")
        named[key if key.startswith((*_NETWORKS, "text_encoder")) else f"unet.{key}"] = value
    unet = convert_unet_state_dict_to_peft({key: value for key, value in named.items() if key.startswith(_NETWORKS)})
    text = {key: value for key, value in named.items() if not key.startswith(_NETWORKS)}
    text = convert_state_dict_to_peft(text) if text else {}
    return {**unet, **{key.replace(".text_model.", "."): value for key, value in text.items()}}


def _strength(settings: dict[str, Any], name: str, rank: int) -> float:
    """What a file's settings multiply a layer by; 1 where there are none."""
    network, _, layer = name.partition(".")
    layer = layer.removesuffix(".lora_B.weight")
    patterns = settings.get(f"{network}.alpha_pattern") or {}
    alpha = next(
        (value for end, value in patterns.items() if layer.endswith(end)), settings.get(f"{network}.lora_alpha")
    )
    if alpha is None:
        return 1.0
    return alpha / (math.sqrt(rank) if settings.get(f"{network}.use_rslora") else rank)


def adapter_config(module: Network) -> LoraConfig:
    """The settings of a network's adapter."""
    return cast(Any, module).peft_config["default"]  # peft sets it, and no class declares it.


def write_adapter(modules: Mapping[str, Network], states: dict[str, dict[str, Tensor]], base: str, path: Path) -> None:
    """Write adapters of strength 1 into the folder `path`.

    Args:
        modules: The network "unet" or "transformer" and, if it has an adapter, "text_encoder".
        states: Their adapters' tensors, under the names of `adapter_state`, of strength 1.
        base: The model that they are made for, which is recorded in the file.
    """
    from diffusers.loaders import SD3LoraLoaderMixin, StableDiffusionLoraLoaderMixin

    layers, settings = {}, {}
    for name, module in modules.items():
        # Those of convolutions are laid out as their layer is, channels last, which safetensors does not write.
        prefix = "text_model." if name == "text_encoder" else ""  # As other programs know CLIP.
        layers[f"{name}_lora_layers"] = {
            key if key.startswith(prefix) else prefix + key: value.contiguous() for key, value in states[name].items()
        }
        config = adapter_config(module).to_dict()
        changes = {"lora_alpha": config["r"], "base_model_name_or_path": base}
        settings[f"{name}_lora_adapter_metadata"] = config | changes
    writer: Any = SD3LoraLoaderMixin if "transformer" in modules else StableDiffusionLoraLoaderMixin
    writer.save_lora_weights(path, weight_name=ADAPTER_FILE, **layers, **settings)
