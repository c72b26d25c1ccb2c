"""The work between the phases with an analytic guide: what is made from what, once, and the same after a restart."""

import json

import pytest
import torch
from PIL import Image
from tiny import tiny_stable_diffusion_folder
from tiny_run import START, tiny_run

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.unet.stable_diffusion import StableDiffusionGuideConfig
from db3d_nerfstudio.run.interventions import Change, add_change
from db3d_nerfstudio.run.manifest import read_manifest
from db3d_nerfstudio.run.record import read_losses
from db3d_nerfstudio.training import runner

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def learned(run, name):
    run.context.guide.load(run.context.folder / "dreambooth" / name)
    return run.shift


def test_each_phase_gets_its_own_guide(config):
    run = tiny_run(config)
    run.runner.before_step(0)
    partial = run.shift
    assert partial != 0 and not run.context.datamanager.has_pseudo_views
    run.runner.before_step(START)
    multiview = run.shift
    assert run.context.datamanager.has_pseudo_views
    full = learned(run, "full")
    assert abs(full) > abs(partial), "four times the steps"
    assert learned(run, "partial") == partial and multiview not in (partial, full)


def test_entering_again_after_a_restart_makes_nothing_and_resets_nothing(config):
    first = tiny_run(config)
    for step in range(START + 2):
        first.runner.before_step(step)
    again = tiny_run(config)
    files = {path: path.stat().st_mtime_ns for path in first.context.folder.rglob("*") if path.is_file()}
    field = again.context.model.field.grids[0].detach().clone()
    again.runner.before_step(START + 1)
    assert again.shift == first.shift and again.context.datamanager.has_pseudo_views
    assert torch.equal(again.context.model.field.grids[0], field)
    assert {path: path.stat().st_mtime_ns for path in first.context.folder.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("fresh", [True, False])
def test_the_final_nerf_is_fresh_or_the_initial_one_and_its_optimizer_forgets(config, fresh):
    config.pipeline.phases.reset_nerf = fresh
    run = tiny_run(config)
    parameter = run.context.model.field.grids[0]
    run.runner.before_step(0)
    parameter.sum().backward()
    run.context.optimizers.optimizers["encodings"].step()
    initial = parameter.detach().clone()
    run.runner.before_step(START)
    assert run.context.model.field.grids[0] is parameter and torch.equal(parameter, initial) != fresh
    assert not run.context.optimizers.optimizers["encodings"].state and parameter.grad is None
    assert run.saved == [START - 1], "the initial NeRF is safe before the long work begins"


def test_learning_rates_fall_during_each_nerf_s_training(config):
    def rates(left, steps):
        config.pipeline.phases.lr_final_fraction = left
        run = tiny_run(config)
        for step in steps:
            run.runner.before_step(step)
            yield run.context.optimizers.optimizers["encodings"].param_groups[0]["lr"]

    assert list(rates(0.01, (0, START, START + 2, START - 1))) == pytest.approx([0.1, 0.1, 0.01, 0.1 * 0.01 ** (2 / 3)])
    assert set(rates(1.0, (0, START - 1, START))) == {0.1}


def test_other_settings_in_the_same_folder_are_an_error_with_the_fix(config):
    tiny_run(config).runner.before_step(0)
    config.pipeline.phases.partial_steps = 5
    with pytest.raises(UserError, match=r"dreambooth/partial .*steps: 2 -> 5.*--resume False"):
        tiny_run(config).runner.before_step(0)


def test_the_hours_are_counted_when_a_run_begins_and_not_when_it_goes_on(config, monkeypatch):
    counted = []
    monkeypatch.setattr(runner, "announce_duration", lambda *_: counted.append(1))
    tiny_run(config).runner.before_step(0)
    tiny_run(config).runner.before_step(1)
    assert counted == [1]


def test_a_guide_that_cannot_be_used_ends_the_run_before_anything_is_made(config, monkeypatch):
    run = tiny_run(config)

    def refuse(prompts):
        raise UserError("unknown word")

    monkeypatch.setattr(run.context.guide, "embed", refuse)
    with pytest.raises(UserError, match="unknown word"):
        run.runner.before_step(0)
    assert not (run.context.folder / "dreambooth").exists()


@pytest.mark.parametrize("view_words", ["none", "guess"])
def test_nothing_is_embedded_that_was_not_checked_at_the_start(config, monkeypatch, view_words):
    dreambooth, sds = config.pipeline.phases.dreambooth, config.pipeline.model.sds
    dreambooth.view_words, dreambooth.class_views, sds.negative_prompt, sds.perp_neg = view_words, True, "ugly", 1.0
    run = tiny_run(config)
    embed, embedded = run.context.guide.embed, []
    monkeypatch.setattr(run.context.guide, "embed", lambda prompts: embedded.append(prompts) or embed(prompts))
    for step in range(START + 2):
        run.runner.before_step(step)
        run.pipeline.get_train_loss_dict(step)
    first, later = set(embedded[0]), {prompt for prompts in embedded[1:] for prompt in prompts}
    assert later <= first and {"ugly", "", config.pipeline.model.prompt + ", back view"} <= later


def test_a_prompt_that_was_set_in_the_viewer_is_checked_at_a_restart(config, monkeypatch):
    add_change(tiny_run(config).context.folder, Change(4, prompt="a sks robot that is too long"))
    run = tiny_run(config)
    embed = run.context.guide.embed

    def refuse(prompts):
        if "too long" in prompts[0]:
            raise UserError("shorten it.")
        return embed(prompts)

    monkeypatch.setattr(run.context.guide, "embed", refuse)
    with pytest.raises(UserError, match="shorten it. It was set in the viewer: remove it from .*interventions.json"):
        run.runner.before_step(0)


def test_what_somebody_did_to_artifacts_is_noticed(config):
    run = tiny_run(config)
    run.runner.before_step(START)
    folder = run.context.folder
    (folder / "dreambooth" / "partial" / "samples.png").unlink()
    tiny_run(config).runner.before_step(START)
    (folder / "dreambooth" / "partial" / "shift.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match=r"dreambooth/partial, shift.safetensors has changed: put it back, or delete"):
        tiny_run(config).runner.before_step(START)


def test_stable_diffusion_goes_through_the_same_phases_with_adapters(config, tmp_path):
    model = config.pipeline.model
    folder = str(tiny_stable_diffusion_folder(tmp_path / "sd"))
    model.guide = StableDiffusionGuideConfig(model=folder, tuning="lora")
    model.sds.guidance_scale = 2.0
    run = tiny_run(config)
    for step in range(START + 2):
        run.runner.before_step(step)
        _, losses, _ = run.pipeline.get_train_loss_dict(step)
        assert ("recon_loss" in losses) == (step >= START and step % 2 == 1)
        sum(losses.values()).backward()
        assert run.context.model.field.grids[0].grad.abs().sum() > 0
    adapters = list((run.context.folder / "dreambooth").rglob("*.safetensors"))
    assert len(adapters) == 3 and len({adapter.read_bytes() for adapter in adapters}) == 3


def test_nerfs_are_filmed_at_the_end_of_their_training(config):
    run = tiny_run(config)
    run.runner.before_step(0)
    folder = run.context.folder / "turntables"
    assert not folder.exists()
    run.runner.before_step(START)
    initial = (folder / "initial-nerf.webp").read_bytes()
    torch.nn.init.constant_(run.context.model.field.grids[0], 5.0)
    run.runner.after_training(START + 2)
    assert read_manifest(run.context.folder)["state"] == "running", "a step is left"
    run.runner.after_training(START + 3)
    assert read_manifest(run.context.folder)["state"] == "finished"
    assert (folder / "initial-nerf.webp").read_bytes() == initial != (folder / "final-nerf.webp").read_bytes()
    with Image.open(folder / "final-nerf.webp") as film:
        assert film.n_frames == 2 and film.size == (16, 8), "colours and normals"
    assert run.context.model.training


def test_what_happens_is_recorded(config):
    run = tiny_run(config)
    run.runner.before_step(START)
    root = run.context.folder
    tasks = json.loads((root / "manifest.json").read_text())["tasks"]
    assert [(name, task["done"]) for name, task in tasks.items()] == [
        ("Class images", 2),
        ("DreamBooth full", 8),
        ("Pseudo views", 3),
        ("DreamBooth partial", 2),
        ("DreamBooth multiview", 3),
    ], "in the order in which this shortened run did them"
    for step in range(START, START + 4):
        run.context.losses = {"a": torch.tensor(float(step)), "b": torch.tensor(1.0)}
        run.runner.after_step(step)
    assert read_losses(root)["a"] == [(step, float(step)) for step in range(START, START + 4)]
    assert run.ends == [START + 4]
