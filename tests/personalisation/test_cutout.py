"""Cutting subjects out: transparent photos stay, others are segmented once, and a person can take a photo back."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from db3d_nerfstudio.cli import main as db3d
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.personalisation import cutout
from db3d_nerfstudio.personalisation.cutout import PhotosConfig, clipseg, cut_out, output_names
from db3d_nerfstudio.photos import load_masks, photo_paths


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A rembg whose model finds the left half of a picture; the sizes of the pictures that it was shown."""
    seen: list[str] = []

    def remove(photo: Image.Image, session: str, only_mask: bool) -> Image.Image:
        assert only_mask and session == "session"
        seen.append(f"{photo.width} x {photo.height}")
        mask = np.zeros((photo.height, photo.width), np.uint8)
        mask[:, : photo.width // 2] = 255
        return Image.fromarray(mask)

    def new_session(name: str) -> str:
        if name == "bad":
            raise ValueError("no such model")
        if name == "far":
            raise ConnectionError("Max retries exceeded with url")
        return "session"

    monkeypatch.setitem(sys.modules, "rembg", SimpleNamespace(remove=remove, new_session=new_session))
    return seen


def alphas(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path).getchannel("A")) for path in photo_paths(folder)]


def test_photos_are_cut_once_and_shown(photos: Path, tmp_path: Path, asked: list[str], capsys) -> None:
    db3d(["photos", str(photos)])
    output = tmp_path / "photos-cut-out"
    assert [path.name for path in photo_paths(output)] == ["00.png", "01.png", "02.png", "03.png"]
    assert asked == ["30 x 20"] * 4
    for alpha in alphas(output):
        assert (alpha[:, :15] == 255).all() and (alpha[:, 15:] == 0).all()
    assert load_masks(output, 16).mean() > 0.5
    with Image.open(tmp_path / "photos-cut-out.png") as sheet:
        assert sheet.size == (2 * 256, 4 * 256)
    printed = capsys.readouterr().out
    assert f"--data {output}" in printed and "--whole" in printed
    db3d(["photos", str(photos)])
    assert len(asked) == 4, "masks are kept"
    (photos / "03.png").unlink()
    db3d(["photos", str(photos), "--whole", "01.png"])
    assert [alpha.min() for alpha in alphas(output)] == [0, 255, 0] and len(asked) == 4


def test_transparent_photos_need_no_model(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    picture = np.full((20, 20, 4), 200, np.uint8)
    picture[5:, :, 3] = 0
    Image.fromarray(picture).save(tmp_path / "in" / "a.png")
    cut_out(tmp_path / "in", tmp_path / "out", PhotosConfig(tmp_path / "in"))
    assert np.array_equal(alphas(tmp_path / "out")[0], picture[..., 3])


def test_what_goes_wrong_is_one_line(photos: Path, tmp_path: Path, asked: list[str], monkeypatch) -> None:
    def run(**settings: object) -> None:
        cut_out(photos, tmp_path / "out", PhotosConfig(photos, **settings))

    with pytest.raises(UserError, match="no photo named 9.png"):
        run(whole=("9.png",))
    with pytest.raises(UserError, match="use u2net"):
        run(model="bad")
    with pytest.raises(UserError, match="cannot download far .ConnectionError.: connect this machine once"):
        run(model="far")
    with pytest.raises(UserError, match="set --noun"):
        run(model="CIDAS/clipseg-rd64-refined")
    monkeypatch.setattr(cutout, "rembg_model", lambda name: lambda photo: Image.new("L", photo.size, 0))
    with pytest.raises(UserError, match="finds nothing in .*--whole 00.png"):
        run()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "rembg", None)
    with pytest.raises(UserError, match=r"pip install .*\[cutout\]"):
        run()


def test_names_keep_the_sides_that_they_name() -> None:
    paths = [Path("2_back.jpg"), Path("a.jpg"), Path("a.webp")]
    assert output_names(paths) == ["2_back.png", "a.jpg.png", "a.webp.png"]


def test_a_word_finds_the_subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPSegConfig(
        text_config={**sizes, "vocab_size": 50, "eos_token_id": 49},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=16,
        reduce_dim=8,
        extract_layers=[0, 1],
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    CLIPSegForImageSegmentation(config).save_pretrained(tmp_path)

    def processor(text: list[str], images: list[Image.Image], return_tensors: str) -> dict[str, torch.Tensor]:
        assert text == ["a dog"]
        pixels = torch.from_numpy(np.array(images[0].resize((32, 32)))).permute(2, 0, 1)[None] / 255
        return {"input_ids": torch.tensor([[48, 5, 6, 49]]), "pixel_values": pixels}

    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", lambda model: processor)
    mask = clipseg(str(tmp_path), "dog")(Image.effect_noise((40, 30), 80).convert("RGB"))
    assert mask.mode == "L" and np.asarray(mask).max() == 255 and np.asarray(mask).std() > 0
    with pytest.raises(UserError, match="cannot be read"):
        clipseg(str(tmp_path / "none"), "dog")


def test_grabcut_needs_no_network(photos: Path, tmp_path: Path) -> None:
    for path in photo_paths(photos):
        picture = Image.new("RGB", (90, 60), "white")
        picture.paste("red", (30, 10, 60, 50))
        picture.save(path)
    cut_out(photos, tmp_path / "cut", PhotosConfig(photos, model="grabcut"))
    for alpha in alphas(tmp_path / "cut"):
        assert alpha[30, 45] == 255 and alpha[5, 5] == 0 and 0.15 < (alpha > 127).mean() < 0.3
