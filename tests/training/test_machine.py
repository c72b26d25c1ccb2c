"""What the machine has to offer is asked before anything is loaded, and answered in one line."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from nerfstudio.configs.base_config import MachineConfig
from tiny_model import build

from db3d_nerfstudio.cameras import image_rays
from db3d_nerfstudio.diffusion import footprint
from db3d_nerfstudio.diffusion.footprint import Work
from db3d_nerfstudio.diffusion.upscaler import UpscalerConfig
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.unet.stable_diffusion import StableDiffusionGuideConfig
from db3d_nerfstudio.nerf.field import GridFieldConfig
from db3d_nerfstudio.nerf.model import DreamBooth3DModelConfig
from db3d_nerfstudio.nerf.occupancy import OccupancySamplerConfig
from db3d_nerfstudio.nerf.render import render_rays
from db3d_nerfstudio.run import manifest
from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig
from db3d_nerfstudio.training import machine
from db3d_nerfstudio.training.datamanager import DreamBooth3DDataManagerConfig
from db3d_nerfstudio.training.machine import (
    MOST_PHOTOS,
    AutoMachineConfig,
    announce_disk,
    announce_memory,
    check_precision,
    choose_device,
    work_of,
)
from db3d_nerfstudio.training.phases import InitialPhaseConfig, NerfPhaseConfig, PhasesConfig
from db3d_nerfstudio.training.random_cameras import RandomCamerasConfig, random_cameras
from db3d_nerfstudio.training.runner import PhaseRunner

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def chosen(guide, config: MachineConfig | None = None) -> str:
    config = AutoMachineConfig() if config is None else config
    choose_device(config, guide, PhasesConfig())
    return config.device_type


def test_a_large_guide_on_a_cpu_has_to_be_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen(ToyboxGuideConfig()) == "cpu"
    assert chosen(StableDiffusionGuideConfig(), AutoMachineConfig(device_type="cpu")) == "cpu"
    assert chosen(StableDiffusionGuideConfig(device="cuda:1")) == "cpu", "only the NeRF would be there"
    with pytest.raises(UserError, match=r"takes 6 days or more.*--machine.device-type cpu"):
        chosen(StableDiffusionGuideConfig())
    short = PhasesConfig(initial=InitialPhaseConfig(steps=10_000), final=NerfPhaseConfig(steps=0))
    with pytest.raises(UserError, match="takes 4 days or more"):
        choose_device(AutoMachineConfig(), StableDiffusionGuideConfig(), short)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen(StableDiffusionGuideConfig()) == chosen(ToyboxGuideConfig()) == "cuda"
    assert chosen(ToyboxGuideConfig(), AutoMachineConfig(device_type="cpu")) == "cpu"


@pytest.mark.parametrize(
    ("flags", "name"), [((True, False), "--mixed-precision"), ((False, True), "--use-grad-scaler")]
)
def test_nerfstudios_mixed_precision_is_refused(flags: tuple[bool, bool], name: str) -> None:
    with pytest.raises(UserError, match=f"{name} True"):
        check_precision(*flags)
    check_precision(False, False)


def test_the_run_decides_what_the_guide_has_to_do() -> None:
    phases, model, data = PhasesConfig(), DreamBooth3DModelConfig(), DreamBooth3DDataManagerConfig(views_per_step=2)
    phases.pseudo_views.chunk, model.sds.perp_neg, data.random_cameras.resolution = 3, 1.0, ((0.0, 32), (0.5, 128))
    nerf = machine.nerf_bytes(2, 128, model.sampler.num_samples)
    assert work_of(phases, model, data) == Work(phases.dreambooth, True, 2, nerf, True, 3)
    model.perceptual_loss_mult, data.dataparser.resolution = 1.0, 512
    assert work_of(phases, model, data).nerf == machine.nerf_bytes(1, 512, model.sampler.num_samples) > nerf
    phases.pseudo_views.upscaler = UpscalerConfig()
    assert work_of(phases, model, data).upscaler is phases.pseudo_views.upscaler
    phases.full_steps = phases.final.steps = 0
    assert not work_of(phases, model, data).tuned
    phases.pseudo_views.references = True
    assert work_of(phases, model, data).references == MOST_PHOTOS


def test_memory_is_announced_once_and_before_the_guide_is_loaded(config, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny_run import tiny_run

    run, asked = tiny_run(config), []
    monkeypatch.setattr("db3d_nerfstudio.training.runner.announce_memory", lambda *args: asked.append(args))
    run.runner.before_step(0)
    assert asked == [(run.context, run.runner.config)]
    run.runner.before_step(3)
    assert len(asked) == 1
    assert isinstance(run.runner, PhaseRunner)


def test_the_line_is_about_the_free_memory_and_what_the_nerf_takes_too(config, monkeypatch, capsys) -> None:
    from tiny_run import tiny_run

    context = tiny_run(config).context
    capsys.readouterr()
    announce_memory(context, config.pipeline.phases)
    assert capsys.readouterr().out == "", "the analytic guide is on the CPU"
    seen: list[tuple] = []
    context.model.config.guide = StableDiffusionGuideConfig(device="cuda:0", dtype="bfloat16")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7, 0))
    monkeypatch.setattr(footprint, "check_fits", lambda *args: seen.append(args) or "It fits.")
    announce_memory(context, config.pipeline.phases)
    assert capsys.readouterr().out == "It fits.\n"
    (guide, dtype, free, work) = seen[0]
    assert guide is context.model.config.guide and dtype == torch.bfloat16 and free == 7
    assert work.dreambooth is config.pipeline.phases.dreambooth
    assert work.nerf == machine.nerf_bytes(1, 64, context.model.config.sampler.num_samples)


def test_the_nerf_keeps_no_more_than_is_reserved_for_it_and_not_far_less(config) -> None:
    """A ball that fills the scene as a subject does, lit, seen in 32 x 32 pixels."""
    model = build(field=GridFieldConfig(blob_radius=0.5), sampler=OccupancySamplerConfig(num_samples=96))
    model.train()
    for _ in range(3):
        model.sampler.update(0, model.field.density)
    cameras, _ = random_cameras(RandomCamerasConfig(), 2, 32)
    storages: dict[int, int] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        render = render_rays(model.field, model.sampler, image_rays(cameras), 0.01)
        held = render.normals, render.albedo
    reserved, kept = machine.nerf_bytes(2, 32, 96), sum(storages.values())
    assert len(held) == 2 and 0.5 * reserved < kept < reserved


def test_a_run_on_the_cpu_of_a_machine_with_a_gpu_reports_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 0)
    assert manifest._memory_mb() > 10
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5 * 2**20)
    assert manifest._memory_mb() == 5


def test_the_disk_space_of_a_run_is_what_it_writes(config) -> None:
    from tiny_run import START, tiny_run

    def needs(**settings: object) -> machine.DiskNeeds:
        phases = dataclasses.replace(config.pipeline.phases, **settings)
        return machine.disk_needs(run.context.guide, 100, phases, (3, 8))

    run, shift, rgb = tiny_run(config), 4, 3 * 8 * 8
    assert needs().fine_tunes == 3 * shift and needs(keep_full=False).fine_tunes == 2 * shift
    assert needs(partial_steps=0).fine_tunes == 2 * shift and needs(multiview_steps=0).fine_tunes == 2 * shift
    one_stage = needs(final=NerfPhaseConfig(steps=0))
    assert (one_stage.fine_tunes, one_stage.images, one_stage.checkpoints) == (shift, 2 * rgb, 600)
    assert needs().images == (2 + 3 * 2 * 2) * rgb and needs().checkpoints == 700
    upscaled = needs(pseudo_views=dataclasses.replace(config.pipeline.phases.pseudo_views, upscaler=UpscalerConfig()))
    assert upscaled.images == (2 + 3 * 2 * (4 * 4 + 1)) * rgb
    run.runner.before_step(START)
    files = [file for part in ("class_images", "pseudo_views/*") for file in run.context.folder.glob(f"{part}/*.png")]
    assert len(files) == 2 + 2 * 3
    assert sum(file.stat().st_size for file in files) < needs().images + len(files) * 100, "and a header for each"


def test_disk_space_is_announced_and_refused_with_what_saves_some(config, monkeypatch, capsys) -> None:
    from tiny_run import tiny_run

    context, phases = tiny_run(config).context, config.pipeline.phases
    context.guide.shift = torch.nn.Parameter(torch.zeros(10**6))
    free = [11 * 10**6]
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free[0]))
    with pytest.raises(UserError, match=r"fine-tuned guides 12 MB.*11 MB are free.*--pipeline.phases.keep-full False"):
        announce_disk(context, phases)
    phases.keep_full = False
    announce_disk(context, phases)
    said = capsys.readouterr().out
    assert "The run takes up to 8 MB" in said and str(context.folder) in said.replace("\n", "")
    (context.folder / "dreambooth").mkdir()
    (context.folder / "dreambooth" / "weights").write_bytes(bytes(4 * 10**6))
    free[0] = 5 * 10**6
    announce_disk(context, phases)  # Half of it is there already.
    assert "5 MB are free" in capsys.readouterr().out
