"""`db3d turntable`: panels in front of white, and films that other programs play."""

import os
import shutil
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from nerfstudio.models.base_model import Model
from PIL import Image
from torch import nn

from db3d_nerfstudio import cli
from db3d_nerfstudio.cameras import orbit_cameras
from db3d_nerfstudio.results import film as turntable
from db3d_nerfstudio.results.open_run import open_run


def play(path, height, width):
    """The frames of a film."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    frames = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(frames, np.uint8).reshape(-1, height, width, 3)


def test_panels_are_in_front_of_white():
    outputs = {
        "albedo": torch.tensor([[[0.2, 0.4, 0.6], [0.0, 0.0, 0.0]]]),  # "rgb" is in front of training's background.
        "accumulation": torch.tensor([[[1.0], [0.0]]]),
        "unit_normals": torch.tensor([[[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]]),
        "depth": torch.tensor([[[2.0], [4.5]]]),
    }
    rgb, normals, depth = (turntable.panel(name, outputs, 3.0) for name in ("rgb", "normals", "depth"))
    assert torch.equal(rgb, torch.tensor([[[0.2, 0.4, 0.6], [1.0, 1.0, 1.0]]]))
    assert normals.tolist() == [[[0.5, 0.5, 1.0], [1.0, 1.0, 1.0]]]
    assert depth[0, 1].tolist() == [1, 1, 1]
    near, middle = depth[0, 0], turntable.panel("depth", outputs | {"depth": torch.full((1, 2, 1), 3.0)}, 3.0)[0, 0]
    assert (near - torch.tensor([0.19, 0.07, 0.23])).abs().max() < 0.01, "the near end of turbo is dark blue"
    assert middle[1] > 0.9, "its middle is green"


def test_films_have_their_frames(tmp_path):
    frames = [np.full((16, 32, 3), 80 * i, np.uint8) for i in range(3)]
    mp4, gif = turntable.save_film(tmp_path, frames, 10)
    played = play(mp4, 16, 32)
    assert len(played) == 3
    assert np.abs(played.mean((1, 2, 3)) - (0, 80, 160)).max() < 5
    with Image.open(gif) as image:
        assert (image.n_frames, image.info["loop"], image.info["duration"]) == (3, 0, 100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["turntable.gif", "turntable.mp4"]


def test_a_run_is_filmed(untrained_run, tmp_path):
    cli.main(["turntable", str(untrained_run), "--output", str(tmp_path), "--frames", "3", "--size", "16"])
    played = play(tmp_path / "turntable.mp4", 16, 48)
    assert len(played) == 3
    assert played[:, 7:9, 7:9].mean() < 240 < played[:, :2, :2].min(), "the blob in the middle, white around it"


def test_odd_sizes_are_refused(untrained_run):
    with pytest.raises(SystemExit, match="even --size"):
        cli.main(["turntable", str(untrained_run), "--size", "33"])


@pytest.fixture
def bare_path(monkeypatch, tmp_path):
    """A PATH without ffmpeg."""
    monkeypatch.setenv("PATH", str(tmp_path))
    yield
    turntable._folder_with_ffmpeg().cleanup()
    turntable._folder_with_ffmpeg.cache_clear()


def test_a_run_opened_for_inference_brings_its_ffmpeg(bare_path, untrained_run):
    from nerfstudio.utils.install_checks import check_ffmpeg_installed

    with pytest.raises(SystemExit):
        check_ffmpeg_installed()
    open_run(untrained_run)
    check_ffmpeg_installed()  # As ns-render does after it has opened the run.
    assert subprocess.run(["ffmpeg", "-version"], capture_output=True, check=True).stdout.startswith(b"ffmpeg version")
    folder = Path(shutil.which("ffmpeg")).parent
    turntable._folder_with_ffmpeg().cleanup()
    assert not folder.exists(), "nothing is left when the process ends"


def test_an_ffmpeg_on_the_path_stays_the_one(monkeypatch, tmp_path):
    own = tmp_path / "ffmpeg"
    own.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    turntable.make_ffmpeg_findable()
    assert os.environ["PATH"] == str(tmp_path)


class Compass(Model):
    """Stands in for a NeRF: every view shows the direction it is seen from."""

    device = torch.device("cpu")

    def __init__(self):
        nn.Module.__init__(self)

    def get_outputs_for_camera(self, camera):
        assert not self.training and not torch.is_grad_enabled()
        direction = nn.functional.normalize(camera.camera_to_worlds[0, :, 3], dim=-1)
        return {"rgb": (direction / 2 + 0.5).expand(4, 4, 3), "accumulation": direction[1].abs().expand(4, 4, 1)}


def test_renders_are_in_the_order_of_the_cameras_and_leave_the_model_in_training():
    model = Compass()
    renders, accumulation = turntable.render_views(model, orbit_cameras(4, 0.0, 3.0, 40.0, 4)[0])
    assert model.training
    expected = torch.tensor([[1, 0.5], [0.5, 1], [0, 0.5], [0.5, 0]])
    assert torch.allclose(renders[:, :2, 0, 0], expected, atol=1e-6)
    assert torch.allclose(accumulation[:, 0, 0, 0], torch.tensor([0.0, 1, 0, 1]), atol=1e-6)
