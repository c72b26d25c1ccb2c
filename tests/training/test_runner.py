"""The work between the phases with an analytic guide: what is made from what, once, and the same after a restart."""

import copy
import json
import threading
import time
from functools import partial

import pytest
import torch
from nerfstudio.configs.base_config import MachineConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig, Optimizers
from nerfstudio.engine.trainer import Trainer
from PIL import Image
from tiny import GaussianGuideConfig, tiny_stable_diffusion_folder

from db3d_nerfstudio.diffusion.dreambooth import DreamBoothConfig
from db3d_nerfstudio.guides.unet.stable_diffusion import StableDiffusionGuideConfig
from db3d_nerfstudio.nerf.field import GridFieldConfig
from db3d_nerfstudio.nerf.model import DreamBooth3DModelConfig
from db3d_nerfstudio.run.record import RunRecord, read_losses
from db3d_nerfstudio.training.phases import NerfPhaseConfig, PhasesConfig, PseudoViewsConfig
from db3d_nerfstudio.training.pipeline import DreamBooth3DPipelineConfig, unlocked
from db3d_nerfstudio.training.pseudo_views import load_pseudo_views
from db3d_nerfstudio.training.runner import PhaseRunner
from db3d_nerfstudio.training.trainer import DreamBooth3DTrainerConfig

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
START = 3


@pytest.fixture
def config(photos, tmp_path):
    phases = PhasesConfig(
        initial=NerfPhaseConfig(steps=START),
        final=NerfPhaseConfig(steps=4),
        pseudo_views=PseudoViewsConfig(guidance_scale=2.0, steps=4, chunk=2),
        dreambooth=DreamBoothConfig(num_class_images=2, class_sample_steps=2),
        partial_steps=2,
        full_steps=8,
        multiview_steps=3,
    )
    model = DreamBooth3DModelConfig(guide=GaussianGuideConfig(mean=0.3), field=GridFieldConfig(resolutions=(4,)))
    config = DreamBooth3DTrainerConfig(
        method_name="m",
        machine=MachineConfig(device_type="cpu"),
        output_dir=tmp_path / "out",
        timestamp="run",
        pipeline=DreamBooth3DPipelineConfig(model=model, phases=phases),
    )
    dataparser = config.pipeline.datamanager.dataparser
    dataparser.num_views, dataparser.resolution = 3, 8
    config.pipeline.datamanager.data = photos
    config.pipeline.model.prompt = "a photo of a sks robot wearing a hat"
    config.set_timestamp()
    return config


class StandIn(Trainer):
    """What the phases use of a trainer."""

    def __init__(self, config):
        self.config = config
        self.pipeline = config.pipeline.setup(device="cpu")
        optimizer = {"optimizer": AdamOptimizerConfig(lr=0.1), "scheduler": None}
        config.optimizers = configs = {"encodings": optimizer, "networks": optimizer}
        self.optimizers = Optimizers(configs, self.pipeline.get_param_groups())
        self.train_lock = threading.Lock()
        self.record = RunRecord(config, config.run_folder())
        self.gradient_accumulation_steps = {"encodings": 2}
        self.training_state, self.step, self.ended_at = "training", 0, None
        self.saved = []

    def save_checkpoint(self, step):
        self.saved.append(step)

    def save_if_due(self, step):
        pass

    def end_at(self, total_steps):
        self.ended_at = total_steps


def make_runner(config):
    """A runner in a freshly started process, so to say."""
    torch.manual_seed(0)
    config = copy.deepcopy(config)
    config.save_config()
    return PhaseRunner(config.pipeline.phases, StandIn(config))


def shift(runner):
    """What DreamBooth has done to the analytic guide."""
    return runner.guide.shift.item()


def learned(runner, name):
    runner.guide.load(runner.workspace.root / "dreambooth" / name)
    return shift(runner)


def test_each_phase_gets_its_own_guide(config):
    runner = make_runner(config)
    runner.before_step(0)
    partial = shift(runner)
    assert partial != 0 and not runner.datamanager.has_pseudo_views
    runner.before_step(START)
    multiview = shift(runner)
    assert runner.datamanager.has_pseudo_views
    full = learned(runner, "full")
    assert abs(full) > abs(partial), "four times the steps"
    assert learned(runner, "partial") == partial and multiview not in (partial, full)


def test_entering_again_after_a_restart_makes_nothing_and_resets_nothing(config):
    first = make_runner(config)
    for step in range(START + 2):
        first.before_step(step)
    again = make_runner(config)
    files = {path: path.stat().st_mtime_ns for path in first.workspace.root.rglob("*") if path.is_file()}
    field = again.model.field.grids[0].detach().clone()
    again.before_step(START + 1)
    assert shift(again) == shift(first) and again.datamanager.has_pseudo_views
    assert torch.equal(again.model.field.grids[0], field)
    assert {path: path.stat().st_mtime_ns for path in first.workspace.root.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("fresh", [True, False])
def test_the_final_nerf_is_fresh_or_the_initial_one_and_its_optimizer_forgets(config, fresh):
    config.pipeline.phases.fresh_final = fresh
    runner = make_runner(config)
    parameter = runner.model.field.grids[0]
    runner.before_step(0)
    parameter.sum().backward()
    runner.trainer.optimizers.optimizers["encodings"].step()
    initial = parameter.detach().clone()
    runner.before_step(START)
    assert runner.model.field.grids[0] is parameter and torch.equal(parameter, initial) != fresh
    assert not runner.trainer.optimizers.optimizers["encodings"].state and parameter.grad is None
    assert runner.trainer.saved == [START - 1], "the initial NeRF is safe before the long work begins"


def test_learning_rates_fall_during_each_nerf_s_training(config):
    def rates(left, steps):
        config.pipeline.phases.learning_rate_left = left
        runner = make_runner(config)
        for step in steps:
            runner.before_step(step)
            yield runner.trainer.optimizers.optimizers["encodings"].param_groups[0]["lr"]

    assert list(rates(0.01, (0, START, START + 2, START - 1))) == pytest.approx([0.1, 0.1, 0.01, 0.1 * 0.01 ** (2 / 3)])
    assert set(rates(1.0, (0, START - 1, START))) == {0.1}


def test_pseudo_views_made_late_still_show_the_initial_nerf(config):
    runner = make_runner(config)
    runner.before_step(0)
    runner.before_step(START)
    folder = runner.workspace.root / "pseudo_views"
    views, renders = load_pseudo_views(folder), (folder / "renders" / "000.png").read_bytes()
    folder.rename(runner.workspace.root.parent / "moved")
    late = make_runner(config)
    torch.nn.init.constant_(late.model.field.grids[0], 5.0)
    late.before_step(START + 1)
    assert torch.equal(load_pseudo_views(folder), views)
    assert (folder / "renders" / "000.png").read_bytes() == renders
    assert bool((late.model.field.grids[0] == 5).all()), "and the model is given back what it had"


@pytest.mark.parametrize(("name", "value"), [("strength", 1.0), ("guidance_scale", 1.0), ("steps", 2), ("margin", 0.1)])
def test_every_setting_of_the_translation_changes_the_pseudo_views(config, name, value):
    views = []
    for config.timestamp in ("run", "other"):
        runner = make_runner(config)
        runner.before_step(START)
        views.append(load_pseudo_views(runner.workspace.root / "pseudo_views"))
        setattr(config.pipeline.phases.pseudo_views, name, value)
    assert not torch.equal(*views)


@pytest.mark.parametrize("missing", ["partial_steps", "full_steps", "multiview_steps"])
def test_a_fine_tuning_of_no_steps_leaves_the_guide_it_starts_from(config, missing):
    setattr(config.pipeline.phases, missing, 0)
    runner = make_runner(config)
    runner.before_step(0)
    partial = shift(runner)
    runner.before_step(START)
    made = {path.name for path in (runner.workspace.root / "dreambooth").iterdir()}
    assert made == {"partial", "full", "multiview"} - {missing.removesuffix("_steps")}
    if missing == "partial_steps":
        assert partial == 0
    if missing == "multiview_steps":
        assert shift(runner) == partial


def test_identifier_and_class_noun_name_the_subject(config):
    phases = config.pipeline.phases
    assert make_runner(config).fine_tunes.subject.class_prompt == "a photo of a robot"
    phases.identifier, phases.class_noun = "hat", "owl"
    assert make_runner(config).fine_tunes.subject.instance_prompt == "a photo of a hat owl"


def test_other_settings_in_the_same_folder_are_an_error_with_the_fix(config):
    make_runner(config).before_step(0)
    config.pipeline.phases.partial_steps = 5
    with pytest.raises(SystemExit, match=r"^Error: .*dreambooth/partial .*steps: 2 -> 5.*--resume False"):
        make_runner(config).before_step(0)


def test_a_guide_that_cannot_be_used_ends_the_run_in_one_line(config, monkeypatch):
    runner = make_runner(config)

    def refuse(prompts):
        raise ValueError('the guide does not know the word "robot"\n(known: dog)')

    monkeypatch.setattr(runner.guide, "embed", refuse)
    with pytest.raises(SystemExit, match=r'^Error: the guide does not know the word "robot" \(known: dog\)$'):
        runner.before_step(0)
    assert not (runner.workspace.root / "dreambooth").exists()


def test_stable_diffusion_goes_through_the_same_phases_with_adapters(config, tmp_path):
    model = config.pipeline.model
    folder = str(tiny_stable_diffusion_folder(tmp_path / "sd"))
    model.guide, model.guidance_scale = StableDiffusionGuideConfig(model=folder, tuning="lora"), 2.0
    runner = make_runner(config)
    for step in range(START + 2):
        runner.before_step(step)
        _, losses, _ = runner.trainer.pipeline.get_train_loss_dict(step)
        assert ("recon_loss" in losses) == (step >= START and step % 2 == 1)
        sum(losses.values()).backward()
        assert runner.model.field.grids[0].grad.abs().sum() > 0
    adapters = list((runner.workspace.root / "dreambooth").rglob("*.safetensors"))
    assert len(adapters) == 3 and len({adapter.read_bytes() for adapter in adapters}) == 3


def test_the_viewer_may_render_while_the_guide_computes(config):
    trainer = make_runner(config).trainer
    with trainer.train_lock:
        with unlocked(trainer):
            assert trainer.train_lock.acquire(blocking=False), "this is the viewer"
            trainer.pipeline.eval()
            trainer.train_lock.release()
        assert trainer.train_lock.locked() and trainer.pipeline.training


def test_every_fine_tuning_leaves_a_sheet_of_its_samples(config):
    runner = make_runner(config)
    runner.before_step(START)
    sheets = [runner.workspace.root / "dreambooth" / name / "samples.png" for name in ("partial", "full", "multiview")]
    assert len({sheet.read_bytes() for sheet in sheets}) == 3
    with Image.open(sheets[0]) as image:
        assert image.size == (4 * 96, 2 * 96), "four views, two of each"


def test_what_happens_is_recorded(config):
    runner = make_runner(config)
    runner.before_step(START)
    root = runner.workspace.root
    tasks = json.loads((root / "manifest.json").read_text())["tasks"]
    assert [(name, task["done"]) for name, task in tasks.items()] == [
        ("Class images", 2),
        ("DreamBooth full", 8),
        ("Pseudo views", 3),
        ("DreamBooth partial", 2),
        ("DreamBooth multiview", 3),
    ], "in the order in which this shortened run did them"
    for step in range(START, START + 4):
        runner.trainer.pipeline.losses = {"a": torch.tensor(float(step)), "b": torch.tensor(1.0)}
        runner.after_step(step)
    assert read_losses(root)["a"] == [(step, float(step)) for step in range(START, START + 4)]
    assert runner.trainer.ended_at == START + 4


def test_the_pause_button_pauses_fine_tunings_and_the_viewer_renders_meanwhile(config):
    runner = make_runner(config)
    trainer, progress = runner.trainer, runner.trainer.record.progress
    runner.model.guide_context = partial(unlocked, trainer)
    trainer.training_state = "paused"

    def train():
        with trainer.train_lock:
            runner.before_step(0)

    work = threading.Thread(target=train, daemon=True)
    work.start()
    while progress.done == 0 and work.is_alive():
        time.sleep(0.01)
    assert trainer.train_lock.acquire(timeout=5), "this is the viewer"
    trainer.train_lock.release()
    time.sleep(0.2)
    assert progress.task.name == "Class images" and work.is_alive()
    trainer.training_state = "training"
    work.join(timeout=30)
    assert (runner.workspace.root / "dreambooth" / "partial").exists()


def test_a_changed_prompt_and_scale_hold_from_the_next_step_on_and_after_a_restart(config):
    runner = make_runner(config)
    runner.before_step(0)
    runner.interventions.wish(prompt="a photo of a sks robot on the moon")
    runner.interventions.wish(guidance_scale=3.0)
    assert runner.model.guidance_scale == config.pipeline.model.guidance_scale
    runner.before_step(1)
    assert (runner.model.prompt, runner.model.guidance_scale) == ("a photo of a sks robot on the moon", 3.0)
    assert runner.model.prompts is None, "to be embedded again before the next guided view"
    runner.before_step(2)
    again = make_runner(config)
    again.before_step(0)
    assert again.model.prompt == config.pipeline.model.prompt, "resumed before the change"
    again.before_step(1)
    assert (again.model.prompt, again.model.guidance_scale) == (runner.model.prompt, 3.0)


@pytest.mark.parametrize("wrong", ["a photo of a robot", "unknown sks word"])
def test_a_prompt_that_cannot_be_is_refused_and_training_goes_on(config, wrong, monkeypatch):
    runner = make_runner(config)
    runner.before_step(0)
    embed = runner.guide.embed

    def picky(prompts):
        if "unknown" in prompts[0]:
            raise ValueError("the guide does not know this word")
        return embed(prompts)

    monkeypatch.setattr(runner.guide, "embed", picky)
    runner.interventions.wish(prompt=wrong)
    runner.before_step(1)
    assert runner.interventions.answer.startswith("Not done: ")
    assert runner.model.prompt == config.pipeline.model.prompt
    assert not (runner.workspace.root / "interventions.json").exists()


def test_a_stage_ended_in_the_viewer_is_as_long_for_the_run_that_resumes(config):
    config.pipeline.phases.initial.steps, config.pipeline.phases.final.steps = 8, 8
    runner = make_runner(config)
    runner.before_step(0)
    runner.interventions.wish(ends="initial")
    runner.before_step(2)
    assert runner.interventions.ends == {"initial": 4}, "the optimizer moves every second step"
    runner.before_step(3)
    assert not runner.datamanager.has_pseudo_views
    again = make_runner(config)
    for step in (3, 4):
        again.before_step(step)
    assert again.datamanager.has_pseudo_views and again.trainer.saved == [3]
    initial = json.loads((again.workspace.root / "initial" / "recipe.json").read_text())
    assert initial == {"steps": 4}
    again.interventions.wish(ends="initial")
    again.interventions.wish(ends="final")
    again.before_step(6)
    assert again.interventions.ends == {"initial": 4, "final": 8}, "the initial NeRF is no longer in training"
    again.trainer.pipeline.losses = {"a": torch.tensor(1.0)}
    again.after_step(6)
    assert again.trainer.ended_at is None
    again.after_step(7)
    assert again.trainer.ended_at == 8
    config.max_num_iterations = 1000
    config.set_timestamp()
    assert config.max_num_iterations == 8, "for the same command knows of it"
