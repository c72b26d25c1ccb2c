"""The work between the phases with an analytic guide: what is made from what, once, and the same after a restart."""

import copy
import threading

import pytest
import torch
from nerfstudio.engine.optimizers import AdamOptimizerConfig, Optimizers
from nerfstudio.engine.trainer import Trainer
from tiny import GaussianGuideConfig, tiny_stable_diffusion_folder

from db3d_nerfstudio.dreambooth import DreamBoothConfig
from db3d_nerfstudio.field import GridFieldConfig
from db3d_nerfstudio.guides.stable_diffusion import StableDiffusionGuideConfig
from db3d_nerfstudio.model import DreamBooth3DModelConfig
from db3d_nerfstudio.phase_runner import PhaseRunner
from db3d_nerfstudio.phases import NerfPhaseConfig, PhasesConfig, PseudoViewsConfig
from db3d_nerfstudio.pipeline import DreamBooth3DPipelineConfig, unlocked
from db3d_nerfstudio.pseudo_views import load_pseudo_views
from db3d_nerfstudio.trainer import DreamBooth3DTrainerConfig

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
START = 3


@pytest.fixture
def config(photos, tmp_path):
    phases = PhasesConfig(
        initial=NerfPhaseConfig(steps=START),
        final=NerfPhaseConfig(steps=4),
        pseudo_views=PseudoViewsConfig(guidance_scale=2.0, sample_steps=4, chunk=2),
        dreambooth=DreamBoothConfig(num_class_images=2, class_sample_steps=2),
        partial_steps=2,
        full_steps=8,
        multiview_steps=3,
    )
    model = DreamBooth3DModelConfig(guide=GaussianGuideConfig(mean=0.3), field=GridFieldConfig(resolutions=(4,)))
    config = DreamBooth3DTrainerConfig(
        method_name="m",
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
        configs = {"encodings": optimizer, "networks": optimizer}
        self.optimizers = Optimizers(configs, self.pipeline.get_param_groups())
        self.train_lock = threading.Lock()
        self.saved = []

    def save_checkpoint(self, step):
        self.saved.append(step)

    def save_if_due(self, step):
        pass


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


def test_the_second_nerf_is_fresh_and_its_optimizer_forgets(config):
    runner = make_runner(config)
    parameter = runner.model.field.grids[0]
    runner.before_step(0)
    before = parameter.detach().clone()
    parameter.sum().backward()
    runner.trainer.optimizers.optimizers["encodings"].step()
    runner.before_step(START)
    assert runner.model.field.grids[0] is parameter and not torch.equal(parameter, before)
    assert not runner.trainer.optimizers.optimizers["encodings"].state and parameter.grad is None
    assert runner.trainer.saved == [START - 1], "the initial NeRF is safe before the long work begins"


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


@pytest.mark.parametrize(("name", "value"), [("strength", 1.0), ("guidance_scale", 1.0), ("sample_steps", 2)])
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
    assert make_runner(config).subject.class_prompt == "a photo of a robot"
    phases.identifier, phases.class_noun = "hat", "owl"
    assert make_runner(config).subject.instance_prompt == "a photo of a hat owl"


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
