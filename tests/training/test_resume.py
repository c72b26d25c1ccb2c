"""All three stages in miniature through the real `ns-train`: unbroken, killed twice and continued, and exported."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny import tiny_toybox_folder

pytestmark = pytest.mark.slow

INITIAL, FINAL, VIEWS = 12, 24, 5
SMALL = f"""
    --pipeline.phases.initial.steps {INITIAL} --pipeline.phases.final.steps {FINAL} --steps-per-save 4
    --pipeline.phases.partial-steps 2 --pipeline.phases.full-steps 60 --pipeline.phases.multiview-steps 2
    --pipeline.phases.dreambooth.prior-loss-weight 0.1 --pipeline.phases.dreambooth.class-views True
    --pipeline.phases.dreambooth.num-class-images 2 --pipeline.phases.dreambooth.class-sampling.steps 2
    --pipeline.phases.pseudo-views.steps 4 --pipeline.datamanager.dataparser.num-views {VIEWS}
    --pipeline.datamanager.dataparser.resolution 16 --pipeline.datamanager.random-cameras.resolution 0 8 0.4 16
    --pipeline.datamanager.train-num-rays-per-batch 64 --pipeline.model.field.resolutions 8 16
    --vis tensorboard --steps-per-eval-batch 5 --steps-per-eval-image 15 --machine.device-type cpu
""".split()


@dataclass
class World:
    """A guide, photos, and a way to call nerfstudio's programs."""

    root: Path

    def start(self, output: str, *arguments: str) -> subprocess.Popen:
        """Begin training; everything it says is appended to `output`.log."""
        command = ["dreambooth3d-toybox", "--data", "photos", "--prompt", "a photo of a sks robot", *SMALL]
        model = ["--pipeline.model.guide.model", str(self.root / "guide"), "--output-dir", output]
        return self.call(output, "ns-train", *command, *model, *arguments)

    def call(self, log: str, program: str, *arguments: str) -> subprocess.Popen:
        """Start a program of this environment, on one thread, which makes sums the same every time."""
        with (self.root / f"{log}.log").open("a") as out:
            return subprocess.Popen(
                [str(Path(sys.executable).with_name(program)), *arguments],
                cwd=self.root,
                env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"},
                stdout=out,
                stderr=out,
            )

    def log(self, name: str) -> str:
        return (self.root / f"{name}.log").read_text()

    def run(self, output: str) -> Path:
        """The only run folder below `output`."""
        (config,) = (self.root / output).glob("*/*/*/config.yml")
        return config.parent

    def checkpoint(self, output: str) -> dict:
        (path,) = (self.run(output) / "nerfstudio_models").iterdir()
        return torch.load(path, map_location="cpu", weights_only=True)

    def kill_when(self, process: subprocess.Popen, condition: Callable[[], bool]) -> None:
        """Kill -9 as soon as the condition holds; the process must not have ended by then."""
        while process.poll() is None and not condition():
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -9


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    tiny_toybox_folder(root / "guide")
    (root / "photos").mkdir()
    random = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(random.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(root / "photos" / f"{i}.png")
    return World(root)


@pytest.fixture(scope="module")
def unbroken(world):
    assert world.start("unbroken").wait() == 0, world.log("unbroken")
    return world.run("unbroken")


def test_the_stages_pass_by_and_leave_their_artifacts(world, unbroken):
    log = world.log("unbroken")
    stages = [log.index(f"Stage {stage}") for stage in ("1/3 initial", "2/3 pseudo_views", "3/3 final")]
    assert stages == sorted(stages)
    assert f"db3d export {unbroken}" in log
    for name in (
        "class_images/recipe.json",
        "turntables/final-nerf.webp",
        "initial/config.yml",
        "pseudo_views/contact_sheet.png",
    ):
        assert (unbroken / name).is_file()
    for name, steps in (("partial", 2), ("full", 60), ("multiview", 2)):
        assert len(json.loads((unbroken / "dreambooth" / name / "losses.json").read_text())) == steps
    frames = json.loads((unbroken / "pseudo_views" / "transforms.json").read_text())["frames"]
    assert [(unbroken / "pseudo_views" / frame["file_path"]).is_file() for frame in frames] == [True] * VIEWS
    assert not list(unbroken.rglob("*.tmp"))


def test_the_terminal_is_free_of_notices_that_no_user_needs(world, unbroken):
    """nerfstudio's warnings before it loads a plugin are out of reach; what comes after them is not."""
    log = world.log("unbroken")
    settings = ("DreamBooth3DTrainerConfig(", "Saving config", "Saving checkpoints", "profiling stats")
    setup = ("Setting up training dataset", "Disabled comet", "disabled local writer", "Training Finished")
    warnings = ("GradScaler", "non-tuple sequence", "This DataLoader will create")
    assert not [notice for notice in (*settings, *setup, *warnings) if notice in log]


def test_tensorboard_gets_both_kinds_of_losses_and_the_pictures(unbroken):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(unbroken)).Reload()
    losses = {name.split("/")[1] for name in events.Tags()["scalars"] if name.startswith("Train Loss Dict/")}
    assert losses >= {"sds_loss", "recon_loss", "opacity_loss"}
    assert {"DreamBooth full/samples", "Pseudo views"} <= set(events.Tags()["images"])


def test_the_checkpoint_holds_the_whole_run_and_no_guide(world, unbroken):
    checkpoint = world.checkpoint("unbroken")
    assert checkpoint["step"] == INITIAL + FINAL - 1
    parts = {name.split(".")[1] for name in checkpoint["pipeline"]}
    assert parts == {"field", "sampler", "device_indicator_param", "pose_adjustment"}
    second = checkpoint["optimizers"]["encodings"]["state"][0]["step"]
    assert second == FINAL / 2, "the second NeRF's optimizer has forgotten the first, and moves every second step"


def test_initial_and_final_nerf_differ(world, unbroken):
    config = yaml.load((unbroken / "initial" / "config.yml").read_text(), Loader=yaml.Loader)
    (path,) = config.get_checkpoint_dir().iterdir()
    initial = torch.load(path, weights_only=True)
    assert initial["step"] == INITIAL - 1
    name = "_model.field.grids.0"
    assert not torch.equal(initial["pipeline"][name], world.checkpoint("unbroken")["pipeline"][name])


def test_killed_at_any_moment_the_same_command_ends_like_the_unbroken_run(world, unbroken):
    output = world.root / "killed"
    process = world.start("killed")
    world.kill_when(process, lambda: any(output.glob("*/*/*/dreambooth/full.tmp")))
    process = world.start("killed")
    world.kill_when(process, lambda: any(output.glob(f"*/*/*/nerfstudio_models/step-*{INITIAL + 5}.ckpt")))
    assert world.start("killed").wait() == 0, world.log("killed")
    log = world.log("killed")
    assert f"at step {INITIAL} of {INITIAL + FINAL}" in log and f"at step {INITIAL + 6} of {INITIAL + FINAL}" in log
    assert differences(world.checkpoint("killed"), world.checkpoint("unbroken")) == []


def test_a_finished_run_is_exported_without_its_guide(world, unbroken):
    shutil.move(world.root / "guide", world.root / "gone")
    try:
        mesh = ["--resolution", "48", "--downscale-factor", "1", "--texture-method", "tsdf"]
        config = ["--load-config", str(unbroken / "config.yml"), "--output-dir", "mesh"]
        assert world.call("export", "ns-export", "tsdf", *config, *mesh).wait() == 0, world.log("export")
    finally:
        shutil.move(world.root / "gone", world.root / "guide")
    header = (world.root / "mesh" / "tsdf_mesh.ply").read_bytes()[:500].decode("latin1")
    assert int(header.split("element vertex ")[1].split()[0]) > 100


def differences(a: object, b: object, name: str = "") -> list[str]:
    """The places at which two checkpoints are not equal to the last bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return [line for key in a for line in differences(a[key], b[key], f"{name}.{key}")]
    if isinstance(a, list | tuple):
        return [line for i, (x, y) in enumerate(zip(a, b, strict=True)) for line in differences(x, y, f"{name}.{i}")]
    return [] if (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b) else [name]
