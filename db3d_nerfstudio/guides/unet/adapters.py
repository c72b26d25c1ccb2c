"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) on diffusers and transformers modules.

They are kept in the file that diffusers' `pipe.load_lora_weights` and its relatives read, together with rank and alpha:
without those two a reader guesses alpha = rank, and the adapter loads with the wrong strength.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from db3d_nerfstudio.errors import UserError

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
_METADATA_KEY = "lora_adapter_metadata"
_TARGETS = {
    "unet": ["to_k", "to_q", "to_v", "to_out.0", "add_k_proj", "add_v_proj"],
    "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"],
}


def add_adapter(name: str, module: nn.Module, rank: int, alpha: float, targets: tuple[str, ...] | None) -> None:
    """Give layers of `module`, "unet" or "text_encoder", a trainable adapter that changes nothing yet.

    One half of it starts random, always in the same way. Both are float32 whatever the frozen weights are kept in.

    Args:
        targets: Ends of the layers' names; None for the projections of all attention layers.
    """
    from peft import LoraConfig

    for target in targets or ():
        if not any(layer == target or layer.endswith(f".{target}") for layer, _ in module.named_modules()):
            raise UserError(f'No layer of the {name} is called "{target}": take it from lora_targets.')
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        init_lora_weights="gaussian",
        target_modules=list(targets or _TARGETS[name]),
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
        base: The model that they are made for, for the file to tell.
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
    """Overwrite tensors in place, so that whoever holds the parameters keeps holding them."""
    for key, tensor in live.items():
        tensor.copy_(values[key])
