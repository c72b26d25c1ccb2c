"""What looks at a finished run and takes things out of it, on the pretend device; the run was trained on a CPU."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nerfstudio.scripts.eval import ComputePSNR
from nerfstudio.scripts.render import RenderInterpolated
from nerfstudio.scripts.train import main
from nerfstudio.utils import eval_utils
from pretend import DEVICE, pretend_device
from tiny import tiny_toybox_folder
from tiny_presets import tiny_config

from db3d_nerfstudio.cli import main as db3d

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class TorchWithADevice(SimpleNamespace):
    """PyTorch, for `eval_setup`, which takes the GPU if there is one."""

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)

    @staticmethod
    def device(_: str) -> torch.device:
        return torch.device(DEVICE)


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the toybox."""
    folder = tmp_path_factory.mktemp("toybox")
    config = tiny_config("dreambooth3d_toybox", tiny_toybox_folder(folder / "model"), None, folder / "out")
    config.pipeline.model.prompt = None
    main(config)
    (run,) = (folder / "out").glob("*/*/*")
    return run


@pytest.fixture
def run(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same, with the pretend device in this process."""
    monkeypatch.setattr(eval_utils, "torch", TorchWithADevice())
    with pretend_device():
        yield trained_run


def test_turntable(run: Path, tmp_path: Path) -> None:
    db3d(["turntable", str(run), "--frames", "2", "--size", "16", "--output", str(tmp_path)])
    assert (tmp_path / "turntable.gif").stat().st_size > 0


def test_evaluate(run: Path) -> None:
    db3d(["evaluate", "--run", str(run), "--turntable-frames", "2"])
    assert json.loads((run / "evaluation" / "metrics.json").read_text())["final"]


def test_export(run: Path, tmp_path: Path) -> None:
    db3d(["export", str(run), "--resolution", "24", "--max-faces", "200", "--output", str(tmp_path)])
    assert list(tmp_path.glob("*.glb"))


def test_ns_eval(run: Path, tmp_path: Path) -> None:
    ComputePSNR(load_config=run / "config.yml", output_path=tmp_path / "psnr.json").main()
    assert json.loads((tmp_path / "psnr.json").read_text())["results"]["psnr"] > 0


def test_ns_render(run: Path, tmp_path: Path) -> None:
    RenderInterpolated(
        load_config=run / "config.yml", output_path=tmp_path / "frames", output_format="images", interpolation_steps=2
    ).main()
    assert list((tmp_path / "frames").iterdir())
