"""Adapters between programs: every reader gives ours one strength, and theirs are read with the strength they have."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_stable_diffusion_folder
from torch import Tensor, nn

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.tuning.lora_file import ADAPTER_FILE, read_adapter
from db3d_nerfstudio.guides.unet.sdxl import SDXLGuideConfig
from db3d_nerfstudio.guides.unet.stable_diffusion import StableDiffusionGuide, StableDiffusionGuideConfig
from db3d_nerfstudio.personalisation.choice import guide_of

RANK, ALPHA = 4, 16.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stable_diffusion_folder(tmp_path_factory.mktemp("sd") / "model")


@pytest.fixture
def guide(model: Path) -> StableDiffusionGuide:
    """A guide whose adapters, of strength 4, change UNet and text encoder."""
    guide = guided(model, lora_alpha=ALPHA)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter))
    return guide


def guided(model: Path, **settings) -> StableDiffusionGuide:
    settings = {"tuning": "lora", "lora_rank": RANK, "train_text_encoder": True, **settings}
    return StableDiffusionGuideConfig(model=str(model), **settings).setup()


def changes(guide: StableDiffusionGuide) -> dict[str, Tensor]:
    """By how much the adapters change each weight."""
    found = {}
    for network, module in (("unet", guide.unet), ("text_encoder", guide.text_encoder)):
        for name, layer in module.named_modules():
            if hasattr(layer, "lora_A") and "default" in layer.lora_A:
                found[f"{network}.{name}".replace("text_model.", "")] = layer.get_delta_weight("default").detach()
    return found


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[key], b[key], atol=1e-6) for key in a)


def as_comfyui_reads(file: Path) -> dict[str, Tensor]:
    """comfy/lora.py, comfy/weight_adapter/lora.py: the names it looks for, and alpha / rank, or 1 without an alpha."""
    tensors, found = load_file(file), {}
    for up_name in [name for name in tensors if re.search(r"\.lora(_linear_layer)?\.up\.weight$", name)]:
        layer = re.sub(r"\.lora(_linear_layer)?\.up\.weight$", "", up_name)
        assert layer.startswith(("unet.", "text_encoder.text_model.encoder.layers.")), layer
        up, down = tensors[up_name], tensors[up_name.replace(".up.", ".down.")]
        alpha = tensors.get(f"{layer}.alpha")
        scale = 1.0 if alpha is None else alpha.item() / down.shape[0]
        found[layer.replace("text_model.", "")] = scale * up @ down
    return found


def test_comfyui_applies_it_at_our_strength(guide: StableDiffusionGuide, tmp_path: Path) -> None:
    guide.save(tmp_path)
    assert equal(as_comfyui_reads(tmp_path / ADAPTER_FILE), changes(guide))


def test_peft_applies_it_at_our_strength(guide: StableDiffusionGuide, model: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel
    from diffusers.utils import convert_unet_state_dict_to_peft
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from safetensors import safe_open

    guide.save(tmp_path)
    with safe_open(tmp_path / ADAPTER_FILE, "pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    names = {"r", "lora_alpha", "target_modules"}
    config = LoraConfig(**{name: settings[f"unet.{name}"] for name in names})
    unet = inject_adapter_in_model(config, UNet2DConditionModel.from_pretrained(model, subfolder="unet"))
    state = {key: value for key, value in load_file(tmp_path / ADAPTER_FILE).items() if key.startswith("unet.")}
    state = {key.removeprefix("unet."): value for key, value in convert_unet_state_dict_to_peft(state).items()}
    assert not set_peft_model_state_dict(unet, state).unexpected_keys
    theirs = {f"unet.{name}": m.get_delta_weight("default") for name, m in layers_of(unet)}
    assert equal(theirs, {key: value for key, value in changes(guide).items() if key.startswith("unet.")})


def layers_of(module: nn.Module):
    return [(name, layer) for name, layer in module.named_modules() if hasattr(layer, "get_delta_weight")]


@pytest.mark.parametrize("alpha", [None, 16.0, 3.0])
def test_ours_comes_back_at_any_strength(guide: StableDiffusionGuide, model: Path, tmp_path: Path, alpha) -> None:
    guide.save(tmp_path)
    again = guided(model, lora_alpha=alpha)
    again.load(tmp_path / ADAPTER_FILE if alpha else tmp_path)
    assert equal(changes(again), changes(guide))


def in_kohyas_names(file: Path, alpha: float) -> dict[str, Tensor]:
    """What kohya's scripts write: weights without the strength, and alphas beside them."""
    found = {}
    for key, value in load_file(file).items():
        layer, end = re.fullmatch(r"(.*)\.lora(?:_linear_layer)?\.((?:up|down)\.weight)", key).groups()
        layer = layer.replace("unet.", "lora_unet_").replace("text_encoder.", "lora_te_").replace(".", "_")
        found[f"{layer}.lora_{end}"] = value * (RANK / alpha) if end.startswith("up") else value
        found[f"{layer}.alpha"] = torch.tensor(alpha)
    return found


def test_kohyas_file_is_read_with_its_alphas(guide: StableDiffusionGuide, model: Path, tmp_path: Path) -> None:
    guide.save(tmp_path / "ours")
    (tmp_path / "theirs").mkdir()
    save_file(in_kohyas_names(tmp_path / "ours" / ADAPTER_FILE, 2.0), tmp_path / "theirs" / "my_dog_v2.safetensors")
    again = guided(model)
    again.load(tmp_path / "theirs")
    assert equal(changes(again), changes(guide))
    adapter = read_adapter(tmp_path / "theirs")
    assert adapter.rank == RANK and adapter.has_text and len(adapter.targets) == len(layers_of(guide.unet))


def test_pefts_folder_is_read_with_its_alpha(guide: StableDiffusionGuide, model: Path, tmp_path: Path) -> None:
    guide.save(tmp_path)
    layers = read_adapter(tmp_path).layers
    state = {f"base_model.model.{k.removeprefix('unet.')}": v for k, v in layers.items() if k.startswith("unet.")}
    half = {key: value / 2 if "lora_B" in key else value for key, value in state.items()}
    (tmp_path / "peft").mkdir()
    save_file(half, tmp_path / "peft" / "adapter_model.safetensors")
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 2 * RANK}))
    again = guided(model, train_text_encoder=False)
    again.load(tmp_path / "peft")
    assert equal(changes(again), {key: value for key, value in changes(guide).items() if key.startswith("unet.")})


def test_the_names_of_old_diffusers_are_read(guide: StableDiffusionGuide, model: Path, tmp_path: Path) -> None:
    guide.save(tmp_path)
    old = {
        re.sub(r"\.(to_\w+?)(\.0)?\.lora\.", r".processor.\1_lora.", key.removeprefix("unet.")): value
        for key, value in load_file(tmp_path / ADAPTER_FILE).items()
        if key.startswith("unet.")
    }
    assert any("processor.to_out_lora.up.weight" in key for key in old)
    save_file(old, tmp_path / "old.safetensors")
    again = guided(model, train_text_encoder=False)
    again.load(tmp_path / "old.safetensors")
    assert equal(changes(again), {key: value for key, value in changes(guide).items() if key.startswith("unet.")})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lora_rank": 2}, "has rank 4, the guide 2: set lora_rank to 4"),
        ({"train_text_encoder": False}, "changes the text encoder too: set the guide's train_text_encoder to True"),
        ({"lora_targets": ("to_q",)}, r"does not fit: \d+ layers are in one but not the other.*lora_targets"),
    ],
)
def test_an_adapter_that_does_not_fit_names_the_setting(guide, model: Path, tmp_path: Path, settings, said) -> None:
    guide.save(tmp_path)
    with pytest.raises(UserError, match=said):
        guided(model, **settings).load(tmp_path)


def test_other_methods_and_several_files_are_named(tmp_path: Path) -> None:
    save_file({"lora_unet_x.hada_w1_a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"a.safetensors is not a plain LoRA \(it has lora_unet_x.hada_w1_a\)"):
        read_adapter(tmp_path)
    save_file({"lora_unet_x.hada_w1_a": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=r"several adapters \(a.safetensors, b.safetensors\): name one"):
        read_adapter(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no pytorch_lora_weights.safetensors"):
        read_adapter(tmp_path / "empty")


def test_files_that_are_no_adapters_are_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a whole model and not an adapter: give it as the guide's model"):
        read_adapter(next((model / "unet").glob("*.safetensors")))
    (tmp_path / "dog.pt").touch()
    with pytest.raises(UserError, match="dog.pt is a pickle"):
        read_adapter(tmp_path / "dog.pt")
    save_file({"x.lora_up.weight": torch.zeros(99)}, tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match="cut.safetensors is cut off: download it again"):
        read_adapter(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("name", ["emb_params", "<dog>"])
def test_a_learned_word_is_no_adapter(tmp_path: Path, name: str) -> None:
    save_file({name: torch.zeros(1, 8)}, tmp_path / "word.safetensors")
    with pytest.raises(UserError, match="is a word learned by textual inversion .* and not a LoRA"):
        read_adapter(tmp_path / "word.safetensors")


def test_kohyas_names_of_sdxl_are_read(tmp_path: Path) -> None:
    layer = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    tensors = {f"{layer}.lora_up.weight": torch.ones(8, 2), f"{layer}.lora_down.weight": torch.ones(2, 8)}
    save_file({**tensors, f"{layer}.alpha": torch.tensor(1.0)}, tmp_path / "xl.safetensors")
    adapter = read_adapter(tmp_path / "xl.safetensors")
    assert adapter.for_sdxl and adapter.targets == ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",)
    assert adapter.layers[f"unet.{adapter.targets[0]}.lora_B.weight"][0, 0] == 0.5
    with pytest.raises(UserError, match="is a LoRA for SDXL: give the guide sdxl"):
        guide_of(tmp_path / "xl.safetensors", StableDiffusionGuideConfig())
    assert guide_of(tmp_path / "xl.safetensors", SDXLGuideConfig()).lora_targets == adapter.targets
    text = {
        name.replace(layer, "lora_te2_text_model_encoder_layers_0_mlp_fc1"): t.clone() for name, t in tensors.items()
    }
    save_file({**tensors, **text}, tmp_path / "text.safetensors")
    with pytest.raises(UserError, match="changes the text encoders of SDXL, which are not tuned here"):
        guide_of(tmp_path / "text.safetensors", SDXLGuideConfig())


UP, DOWN = "unet.x.lora_B.weight", "unet.x.lora_A.weight"


@pytest.mark.parametrize(
    ("tensors", "settings", "line"),
    [
        ({UP: torch.zeros(4, 2)}, "{}", r"not a whole LoRA \(unet.x.lora_B.weight has no counterpart\)"),
        ({}, "{}", r"not a whole LoRA \(it is empty\)"),
        ({UP: torch.full((4, 2), torch.nan), DOWN: torch.zeros(2, 4)}, "{}", "not finite: its training went wrong"),
        ({UP: torch.zeros(4, 2), DOWN: torch.zeros(2, 4)}, "{cut off", "settings of the adapter in .* cannot be read"),
    ],
)
def test_a_damaged_adapter_is_refused_in_one_line(tmp_path: Path, tensors, settings: str, line: str) -> None:
    save_file(tensors, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": settings})
    with pytest.raises(UserError, match=line):
        read_adapter(tmp_path)
