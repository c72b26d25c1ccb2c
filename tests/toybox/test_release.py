"""A release is what was trained, at half precision."""

import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_toybox_folder

from db3d_nerfstudio.toybox import network, release
from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig
from db3d_nerfstudio.toybox.judge import Judge, load_judge


def test_a_released_guide_is_the_trained_one_at_half_precision(guide_folder, tmp_path):
    release.main(release.ReleaseConfig(guide=guide_folder, weights=tmp_path))
    for file in ("unet/config.json", "vae/config.json"):
        assert str(guide_folder) not in (tmp_path / "guide" / file).read_text()
    weights = [tensor for file in tmp_path.rglob("*.safetensors") for tensor in load_file(file).values()]
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    assert {tensor.dtype for tensor in weights if tensor.is_floating_point()} == {torch.float16}
    one, other = (ToyboxGuideConfig(model=path).setup(device="cpu") for path in (guide_folder, tmp_path / "guide"))
    rgb, text = torch.rand(1, 3, 64, 64), one.embed(["a photo of a red dog, side view"])
    z = other.encode(rgb)
    assert z.dtype == other.unet.dtype == torch.float32
    torch.testing.assert_close(z, one.encode(rgb), atol=0.05, rtol=0)
    t = torch.tensor([500])
    torch.testing.assert_close(other.predict_noise(z, t, text), one.predict_noise(z, t, text), atol=0.02, rtol=0)


def test_a_released_guide_keeps_its_words_and_its_schedule(tmp_path):
    folder = tiny_toybox_folder(tmp_path / "guide")
    release.main(release.ReleaseConfig(guide=folder, weights=tmp_path / "weights"))
    one, other = (ToyboxGuideConfig(model=path).setup(device="cpu") for path in (folder, tmp_path / "weights/guide"))
    assert one.tokenizer.get_vocab() == other.tokenizer.get_vocab() != network.make_tokenizer().get_vocab()
    assert torch.equal(one.alphas_cumprod, other.alphas_cumprod) and other.prediction_type == one.prediction_type


def test_a_released_judge_is_the_trained_one_at_half_precision(tmp_path):
    judge = Judge().eval()
    save_file(judge.state_dict(), tmp_path / "judge.safetensors")
    release.main(release.ReleaseConfig(judge=tmp_path / "judge.safetensors", weights=tmp_path / "weights"))
    rgb = torch.rand(2, 3, 64, 64)
    loaded = load_judge(tmp_path / "weights" / "judge" / "model.safetensors")
    torch.testing.assert_close(loaded.look(rgb).embedding, judge.look(rgb).embedding, atol=5e-3, rtol=0)


def test_what_ships_is_small():
    assert sum(file.stat().st_size for file in release.WEIGHTS.rglob("*") if file.is_file()) < 60e6
