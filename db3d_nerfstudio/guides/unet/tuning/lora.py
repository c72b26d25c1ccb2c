"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) on diffusers and transformers modules.

They are kept in the file that diffusers' `pipe.load_lora_weights` reads, together with rank and alpha: without these,
a reader assumes alpha = rank, and the adapter loads with the wrong strength.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.unet.config import DiffusersGuideConfig
from db3d_nerfstudio.guides.unet.tuning.base import Tuning, check_saved

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
_METADATA_KEY = "lora_adapter_metadata"
ATTENTION = {
    "unet": ("to_k", "to_q", "to_v", "to_out.0", "add_k_proj", "add_v_proj"),
    "text_encoder": ("q_proj", "k_proj", "v_proj", "out_proj"),
}
"""Ends of the names of the projections of all attention layers, by the networks' folders."""


class LoraTuning(Tuning):
    """Low-rank"""

    def __init__(self, modules: dict[str, nn.Module], config: DiffusersGuideConfig) -> None:
        self.modules, self._base = modules, config.source
        alpha = float(config.lora_rank) if config.lora_alpha is None else config.lora_alpha
        for name, module in modules.items():
            targets = config.lora_targets if name == "unet" else None
            add_adapter(name, module, config.lora_rank, alpha, targets)
        self._fresh = {
            name: {key: value.clone() for key, value in adapter_state(module).items()}
            for name, module in modules.items()
        }

    def save(self, path: Path) -> None:
        save_adapters(self.modules, self._base, path)

    def load(self, path: Path | None) -> None:
        if path is None:
            for name, module in self.modules.items():
                copy_into(adapter_state(module), self._fresh[name])
        else:
            check_saved(path, [ADAPTER_FILE])
            load_adapters(self.modules, path)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        for module in self.modules.values():
            module.disable_adapters()
        try:
            yield
        finally:
            for module in self.modules.values():
                module.enable_adapters()


def lora_layers(name: str, module: nn.Module, targets: tuple[str, ...] | None) -> list[nn.Module]:
    """The layers of the network `name` that get an adapter; a target that matches no layer is an error.

    Args:
        targets: Suffixes of the layers' names; None for the projections of all attention layers.
    """
    layers: list[nn.Module] = []
    for target in targets or ATTENTION[name]:
        found = [layer for key, layer in module.named_modules() if key == target or key.endswith(f".{target}")]
        if targets and not found:
            raise UserError(f'No layer of the {name} is called "{target}": remove it from lora_targets.')
        layers += found
    return layers


def add_adapter(name: str, module: nn.Module, rank: int, alpha: float, targets: tuple[str, ...] | None) -> None:
    """Give layers of `module`, "unet" or "text_encoder", a trainable adapter that has no effect yet.

    One half of it starts random, always with the same values. Both are float32, whatever the frozen weights are.
    `targets` are those of `lora_layers`.
    """
    from peft import LoraConfig

    lora_layers(name, module, targets)  # Raises where peft would ignore a target.
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        init_lora_weights="gaussian",
        target_modules=list(targets or ATTENTION[name]),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module.add_adapter(config)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def adapter_state(module: nn.Module) -> dict[str, Tensor]:
    """The adapter's live tensors under the keys that diffusers uses in files.

    Its own training scripts' names cover attention layers only; where there are others, all get peft's names, because
    diffusers does not read a file with both.
    """
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    state = get_peft_model_state_dict(module, save_embedding_layers=False)
    renamed = convert_state_dict_to_diffusers(dict(state))
    return state if any(".lora_A." in key for key in renamed) else renamed


def save_adapters(modules: dict[str, nn.Module], base: str, path: Path) -> None:
    """Write the adapters of "unet" and, where it has one, "text_encoder" into the folder `path`.

    Args:
        base: The model that they are made for, which is recorded in the file.
    """
    from diffusers.loaders import StableDiffusionLoraLoaderMixin

    layers = {
        # Those of convolutions are laid out as their layer is, channels last, which safetensors does not write.
        f"{name}_lora_layers": {key: value.contiguous() for key, value in adapter_state(module).items()}
        for name, module in modules.items()
    }
    settings = {
        f"{name}_lora_adapter_metadata": module.peft_config["default"].to_dict() | {"base_model_name_or_path": base}
        for name, module in modules.items()
    }
    StableDiffusionLoraLoaderMixin.save_lora_weights(path, weight_name=ADAPTER_FILE, **layers, **settings)


def load_adapters(modules: dict[str, nn.Module], path: Path) -> None:
    """Copy the adapters in the folder `path` into those of `modules`, which must be of the same rank and alpha."""
    from safetensors import safe_open

    with safe_open(path / ADAPTER_FILE, "pt") as file:
        saved = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
        settings = json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}"))
    wanted = {f"{name}.{key}": live for name, module in modules.items() for key, live in adapter_state(module).items()}
    made_for = settings.get("unet.base_model_name_or_path")
    fix = f"Set the guide's model{f' ({made_for})' if made_for else ''}, lora_targets and train_text_encoder"
    if saved.keys() != wanted.keys():
        odd = sorted(saved.keys() ^ wanted.keys())
        raise UserError(
            f"The adapter in {path} does not fit: {len(odd)} layers are in one but not the other, among them {odd[0]}. "
            f"{fix} to those it was made with."
        )
    for name, module in modules.items():
        ours = module.peft_config["default"]
        for setting in ("r", "lora_alpha"):
            theirs = settings.get(f"{name}.{setting}", getattr(ours, setting))
            if theirs != getattr(ours, setting):
                raise UserError(
                    f"The adapter in {path} has {setting} {theirs}, the guide {getattr(ours, setting)}: "
                    "set the guide's lora_rank and lora_alpha to the adapter's."
                )
    for key, live in wanted.items():
        if saved[key].shape != live.shape:
            raise UserError(f"The adapter in {path} was made for another model: {key} differs in shape. {fix} to its.")
    copy_into(wanted, saved)


@torch.no_grad()
def copy_into(live: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Overwrite tensors in place, so that references to the parameters stay valid."""
    for key, tensor in live.items():
        tensor.copy_(values[key])
