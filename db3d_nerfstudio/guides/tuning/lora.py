"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) on diffusers and transformers modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.config import DiffusersGuideConfig
from db3d_nerfstudio.guides.tuning.base import Tuning
from db3d_nerfstudio.guides.tuning.lora_file import Adapter, adapter_config, read_adapter, write_adapter

if TYPE_CHECKING:
    from db3d_nerfstudio.guides.tuning.base import Network

ATTENTION: dict[str, tuple[str, ...]] = {
    "unet": ("to_k", "to_q", "to_v", "to_out.0", "add_k_proj", "add_v_proj"),
    "text_encoder": ("q_proj", "k_proj", "v_proj", "out_proj"),
}
"""Ends of the names of the projections of all attention layers, by the networks' folders."""


class LoraTuning(Tuning):
    """Low-rank"""

    def __init__(
        self,
        modules: Mapping[str, Network],
        config: DiffusersGuideConfig,
        defaults: dict[str, tuple[str, ...]] = ATTENTION,
    ) -> None:
        """Args: `defaults` are the layers with an adapter, by network, where the config names none."""
        self.modules, self._base = modules, config.source
        alpha = float(config.lora_rank) if config.lora_alpha is None else config.lora_alpha
        for name, module in modules.items():
            chosen = () if name == "text_encoder" else config.lora_targets or ()
            check_targets(name, module, chosen)
            add_adapter(module, config.lora_rank, alpha, chosen or defaults[name])
        self._fresh = {
            name: {key: value.clone() for key, value in adapter_state(name, module).items()}
            for name, module in modules.items()
        }

    def save(self, path: Path) -> None:
        save_adapters(self.modules, self._base, path)

    def load(self, path: Path | None) -> None:
        if path is None:
            for name, module in self.modules.items():
                copy_into(adapter_state(name, module), self._fresh[name])
        else:
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


def check_targets(name: str, module: Network, targets: tuple[str, ...]) -> None:
    """Raise if a suffix of layers' names fits no layer of the network `name`, which peft would ignore."""
    for target in targets:
        if not any(key == target or key.endswith(f".{target}") for key, _ in module.named_modules()):
            raise UserError(
                f'No layer of the {name} is called "{target}": remove it from lora_targets or, if it comes from a '
                "LoRA's file, set the guide's model to the one that the LoRA was made for."
            )


def add_adapter(module: Network, rank: int, alpha: float, targets: tuple[str, ...]) -> None:
    """Give layers of `module` a trainable adapter that has no effect yet.

    One half of it starts random, always with the same values. Both are float32, whatever the frozen weights are.

    Args:
        targets: Suffixes of the layers' names.
    """
    from peft import LoraConfig

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  (peft takes fractions, too)
        init_lora_weights="gaussian",
        target_modules=list(targets),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module.add_adapter(config)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def adapter_state(name: str, module: Network) -> dict[str, Tensor]:
    """The live tensors of the adapter of the network `name`, under the keys that diffusers uses in files.

    Those of transformers are peft's. For UNets, the names in its training scripts cover attention layers only; where
    there are others, all get peft's names, because diffusers does not read a file with both.
    """
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    state = get_peft_model_state_dict(module, save_embedding_layers=False)
    if name == "transformer":
        return state
    renamed = convert_state_dict_to_diffusers(dict(state))
    return state if any(".lora_A." in key for key in renamed) else renamed


def strength(module: Network) -> float:
    """What the adapter of a network is multiplied by."""
    config = adapter_config(module)
    return config.lora_alpha / config.r


def save_adapters(modules: Mapping[str, Network], base: str, path: Path) -> None:
    """Write the adapters of "unet" or "transformer" and, where it has one, "text_encoder" into the folder `path`.

    Args:
        base: The model that they are made for, which is recorded in the file.
    """
    states = {}
    for name, module in modules.items():
        state = adapter_state(name, module)
        states[name] = {key: value * strength(module) if _is_up(key) else value for key, value in state.items()}
    write_adapter(modules, states, base, path)


def load_adapters(modules: Mapping[str, Network], path: Path) -> None:
    """Copy the adapters in a folder or file into those of `modules`, which must change the same layers.

    Raises:
        UserError: they do not fit; the message names the settings that would.
    """
    from peft.utils import get_peft_model_state_dict

    saved = read_adapter(path, getattr(modules.get("unet"), "config", None))
    wanted, strengths = {}, {}
    for name, module in modules.items():
        for key, live in get_peft_model_state_dict(module, save_embedding_layers=False).items():
            wanted[f"{name}.{key}".replace(".text_model.", ".")] = live
            strengths[f"{name}.{key}".replace(".text_model.", ".")] = strength(module) if _is_up(key) else 1.0
    if saved.has_text and "transformer" in modules:
        raise UserError(f"The adapter in {path} changes the text encoder, which this guide does not: make one without")
    _check_fit(path, saved, wanted)
    copy_into(wanted, {key: value / strengths[key] for key, value in saved.layers.items()})


def _is_up(key: str) -> bool:
    return ".up." in key or ".lora_B." in key


def _check_fit(path: Path, saved: Adapter, wanted: dict[str, Tensor]) -> None:
    made_for = f" ({saved.base})" if saved.base else ""
    if saved.has_text != any(key.startswith("text_encoder.") for key in wanted):
        raise UserError(
            f"The adapter in {path} changes {'the text encoder too' if saved.has_text else 'the UNet alone'}: set the "
            f"guide's train_text_encoder to {saved.has_text}."
        )
    odd = sorted(saved.layers.keys() ^ wanted.keys())
    if odd:
        raise UserError(
            f"The adapter in {path} does not fit: {len(odd)} layers are in one but not the other, among them {odd[0]}. "
            f"Set the guide's model{made_for} and lora_targets to those it was made with."
        )
    rank = next(live.shape[0] for key, live in wanted.items() if ".lora_A." in key)
    if saved.rank != rank:
        raise UserError(
            f"The adapter in {path} has rank {saved.rank}, the guide {rank}: set lora_rank to {saved.rank}."
        )
    for key, live in wanted.items():
        if saved.layers[key].shape != live.shape:
            raise UserError(
                f"The adapter in {path} was made for another model: {key} differs in shape. Set the guide's "
                f"model{made_for} to the one it was made for."
            )


@torch.no_grad()
def copy_into(live: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Overwrite tensors in place, so that references to the parameters stay valid."""
    for key, tensor in live.items():
        tensor.copy_(values[key])
