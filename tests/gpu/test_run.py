"""A run of Stable Diffusion's size on a GPU: all stages, killed and resumed, looked at, and out of memory."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from nerfstudio.scripts.train import main
from tiny_pipelines import tiny_clip_tokenizer
from tiny_presets import VIEWS, tiny_config

from db3d_nerfstudio.guides.shapes import SHAPES
from db3d_nerfstudio.training.pipeline import DreamBooth3DPipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Stable Diffusion 1.5's networks, 4.3 GB of random weights."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    folder, shapes = tmp_path_factory.mktemp("sd15"), SHAPES["sd15"]
    with torch.device("cuda"):
        UNet2DConditionModel(**shapes["unet"]).save_pretrained(folder / "unet")
        AutoencoderKL(**shapes["vae"]).save_pretrained(folder / "vae")
        ids = {"bos_token_id": 188, "eos_token_id": 189, "pad_token_id": 189}
        CLIPTextModel(CLIPTextConfig(**shapes["text_encoder"], **ids)).save_pretrained(folder / "text_encoder")
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    DDPMScheduler(**betas).save_pretrained(folder / "scheduler")
    tiny_clip_tokenizer(folder / "words").save_pretrained(folder / "tokenizer")
    return folder


def small_config(model: Path, photos: Path, output: Path):
    """Few steps, but views and pseudo views of 64 pixels."""
    config = tiny_config("dreambooth3d", model, photos, output)
    config.machine.device_type = "cuda"
    config.pipeline.datamanager.resolution = config.pipeline.datamanager.dataparser.resolution = 64
    return config


def test_three_stages(model: Path, photos: Path, tmp_path: Path, measured: Callable) -> None:
    with measured("dreambooth3d, three stages of few steps"):
        main(small_config(model, photos, tmp_path / "out"))
    (run,) = (tmp_path / "out").glob("*/*/*")
    for name, steps in (("partial", 2), ("full", 3), ("multiview", 1)):
        assert len(json.loads((run / "dreambooth" / name / "losses.json").read_text())) == steps
    assert len(list((run / "pseudo_views" / "images").iterdir())) == VIEWS


def arguments(photos: Path, output: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "nerfstudio.scripts.train", "dreambooth3d-toybox"),
        *("--data", str(photos), "--prompt", "a photo of a sks duck", "--output-dir", str(output)),
        *("--machine.device-type", "cuda", "--vis", "tensorboard", "--steps-per-save", "10"),
        *("--pipeline.phases.initial.steps", "60", "--pipeline.phases.final.steps", "40"),
        *("--pipeline.phases.partial-steps", "2", "--pipeline.phases.full-steps", "2"),
        *("--pipeline.phases.multiview-steps", "2", "--pipeline.phases.dreambooth.num-class-images", "2"),
    ]


@pytest.fixture
def toys() -> Path:
    from db3d_nerfstudio.toybox.examples import default_subject

    return default_subject()[0]


def test_killed_and_resumed(toys: Path, tmp_path: Path) -> None:
    command = arguments(toys, tmp_path / "out")
    process = subprocess.Popen(command, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    end = time.monotonic() + 300
    while not list((tmp_path / "out").glob("*/*/*/nerfstudio_models/*.ckpt")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (run,) = (tmp_path / "out").glob("*/*/*")
    fine_tunes = (run / "dreambooth" / "partial").stat().st_mtime_ns
    subprocess.run(command, check=True)
    (again,) = (tmp_path / "out").glob("*/*/*")
    assert again == run and (run / "dreambooth" / "partial").stat().st_mtime_ns == fine_tunes
    (checkpoint,) = (run / "nerfstudio_models").iterdir()
    assert torch.load(checkpoint, map_location="cpu", weights_only=True)["step"] == 99


@pytest.fixture
def onlookers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Threads that render whenever the trainer's lock is free, as the viewer's do; the number of their renders."""
    seen, over, right = [], threading.Event(), DreamBooth3DPipeline.get_training_callbacks
    threads: list[threading.Thread] = []

    def look(trainer) -> None:
        camera = trainer.pipeline.datamanager.train_dataset.cameras[:1].to(trainer.pipeline.device)
        while not over.is_set():
            with trainer.train_lock, torch.no_grad():
                trainer.pipeline.eval()
                rgb = trainer.pipeline.model.get_outputs_for_camera(camera)["rgb"]
                trainer.pipeline.train()
                assert rgb.isfinite().all()
            seen.append(len(rgb))
            time.sleep(0.01)

    def spy(self: DreamBooth3DPipeline, attributes) -> list:
        threads.append(threading.Thread(target=look, args=(attributes.trainer,), daemon=True))
        threads[-1].start()
        return right(self, attributes)

    monkeypatch.setattr(DreamBooth3DPipeline, "get_training_callbacks", spy)
    yield seen
    over.set()
    for thread in threads:
        thread.join(10)


def test_somebody_looks_on(model: Path, photos: Path, tmp_path: Path, onlookers: list[int]) -> None:
    main(small_config(model, photos, tmp_path / "out"))
    assert len(onlookers) > 5


def test_out_of_memory_ends_in_one_line_and_the_same_command_goes_on(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = small_config(model, photos, tmp_path / "out")
    config.pipeline.phases.dreambooth.batch_size = 512
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(20 * 2**30 / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(SystemExit) as end:
            main(config)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory" in str(end.value) and "the same command continues this run" in str(end.value)
    torch.cuda.empty_cache()
    main(small_config(model, photos, tmp_path / "out"))
