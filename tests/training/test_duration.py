"""A run's hours on a GPU are a count of its guide's operations: layer by layer, and task by task."""

import re
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from tiny import tiny_stable_diffusion_folder
from torch import nn

from db3d_nerfstudio.diffusion.dreambooth import DreamBoothConfig
from db3d_nerfstudio.diffusion.footprint import Work
from db3d_nerfstudio.guides.unet.stable_diffusion import StableDiffusionGuideConfig
from db3d_nerfstudio.training.duration import PEAKS, Passes, announce_duration, line, operations, passes_of
from db3d_nerfstudio.training.phases import InitialPhaseConfig, NerfPhaseConfig, PhasesConfig, PseudoViewsConfig

CARD = "NVIDIA GeForce RTX 3090"

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def by_hand(guide, work) -> int:
    """Operations of every convolution, linear layer and attention of a real guide."""
    found: list[int] = []

    def count(layer: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        found.append(2 * output.numel() * layer.weight[0].numel())

    def attend(q, k, v, *args, **kwargs) -> torch.Tensor:
        found.append(4 * q.numel() * k.shape[-2])
        return q

    layers = [part for m in guide.modules().values() for part in m.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad(), mock.patch.object(nn.functional, "scaled_dot_product_attention", attend):
        work()
    for hook in hooks:
        hook.remove()
    return sum(found)


def test_a_pass_is_the_sum_of_its_layers(tmp_path: Path) -> None:
    config = StableDiffusionGuideConfig(model=str(tiny_stable_diffusion_folder(tmp_path)), vae_dtype="bfloat16")
    guide = config.setup()
    z, rgb = torch.zeros(1, *guide.z_shape), torch.zeros(1, 3, guide.resolution, guide.resolution)
    text, t = guide.embed(["a"]), torch.zeros(1, dtype=torch.long)
    passes = passes_of(config, torch.bfloat16)
    assert passes.network == by_hand(guide, lambda: guide.predict_noise(z, t, text)) > 0
    assert passes.encode == by_hand(guide, lambda: guide.encode(rgb)) > 0
    assert passes.decode == by_hand(guide, lambda: guide.decode(z)) > passes.encode
    whole = passes_of(replace(config, vae_dtype="float32"), torch.float32)
    assert whole == Passes(2 * passes.network, 2 * passes.encode, 2 * passes.decode)


def test_tasks_are_made_of_passes() -> None:
    dreambooth = DreamBoothConfig(batch_size=3, num_class_images=7)
    phases = PhasesConfig(
        initial=InitialPhaseConfig(steps=10), final=NerfPhaseConfig(steps=8), dreambooth=dreambooth,
        pseudo_views=PseudoViewsConfig(strength=0.5, steps=6), partial_steps=2, full_steps=4, multiview_steps=0,
    )  # fmt: skip

    def of(work: Work, phases: PhasesConfig = phases, **settings: object) -> dict[str, int]:
        config = StableDiffusionGuideConfig(**settings)
        return operations(Passes(1000, 10, 1), config, work, phases, 5)

    assert of(Work(dreambooth)) == {
        "Class images": 7 * (25 * 2 * 1000 + 1),
        "DreamBooth partial": 2 * 6 * 3 * 1000,
        "Initial NeRF": 10 * (2 * 1000 + 2 * 10),
        "DreamBooth full": 4 * 6 * 3 * 1000,
        "Pseudo views": 5 * (3 * 2 * 1000 + 1),
        "Final NeRF": 4 * (2 * 1000 + 2 * 10),
    }
    saving = of(Work(dreambooth, views=2, perp_neg=True), tuning="lora", gradient_checkpointing=True)
    assert saving["DreamBooth partial"] == 2 * 6 * 3 * 1000, "no gradient of the weights, but one more pass forwards"
    assert saving["Initial NeRF"] == 10 * 2 * (4 * 1000 + 3 * 10)
    without = replace(phases, dreambooth=replace(dreambooth, prior_loss_weight=0.0))
    assert of(Work(without.dreambooth), without)["DreamBooth full"] == 4 * 3 * 3 * 1000
    fitted = replace(phases, initial=InitialPhaseConfig(steps=10, mesh=Path("mesh.glb")))
    assert "Initial NeRF" not in of(Work(dreambooth), fitted)


def test_the_line_is_of_this_card_and_these_steps(config, tmp_path: Path, monkeypatch, capsys) -> None:
    from tiny_run import tiny_run

    context, phases = tiny_run(config).context, replace(config.pipeline.phases)
    folder, cards = tiny_stable_diffusion_folder(tmp_path), [CARD]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: cards[0])
    monkeypatch.setitem(PEAKS, CARD, 1e5)  # It is a tiny guide.

    def hours(steps: int) -> list[float]:
        phases.initial = InitialPhaseConfig(steps=steps)
        capsys.readouterr()
        announce_duration(context, phases)
        return [float(found) for found in re.findall(r"\d+\.\d", capsys.readouterr().out)]

    assert hours(10_000) == [], "the analytic guide is on the CPU"
    context.model.config.guide = StableDiffusionGuideConfig(model=str(folder), device="cuda:0", dtype="bfloat16")
    short, long = hours(10_000), hours(20_000)
    assert len(short) == 2 and 2.4 < short[1] / short[0] < 2.6
    assert long[0] / short[0] == pytest.approx(2, rel=0.05), "nearly all of it is distillation"
    cards[0] = "A card of tomorrow"
    assert hours(10_000) == []


def test_hours() -> None:
    assert "for about 2.0 to 5.0 hours" in line(CARD, 71 * 3600 * 10**12) and CARD in line(CARD, 1)
