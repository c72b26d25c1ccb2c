"""The latent guide: it learns from encoded pictures, and what comes out is a guide like any other."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from db3d_nerfstudio.diffusion.guidance import Conditioning
from db3d_nerfstudio.diffusion.sampling import TranslationConfig, translate
from db3d_nerfstudio.toybox import captions, dataset, latents, network, release, sides, train_unet, vae
from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig
from db3d_nerfstudio.words import VIEW_NAMES


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    return vae.make_vae().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return dataset.make_dataset(dataset.DatasetConfig(root, 4, 2, 2, toy_share=0.5, workers=1))


@pytest.fixture(scope="module")
def pictures(shards, codec):
    return latents.load_latents(shards, latents.make_latents(shards, codec))


@pytest.fixture(scope="module")
def guide_folder(tmp_path_factory, codec):
    folder = tmp_path_factory.mktemp("guide")
    torch.manual_seed(0)
    network.save_guide(folder, network.make_latent_unet(), network.make_text_encoder(), codec)
    return folder


def test_latents_are_the_pictures_and_their_mirror_images(shards, pictures, codec):
    images = torch.from_numpy(dataset.load_images(shards)).permute(0, 3, 1, 2).float() / 255
    assert pictures.z.shape == (2, 8, 16, 8, 8) and pictures.z.dtype == torch.float16
    for half, shown in zip(pictures.z.float(), (images, images.flip(-1)), strict=True):
        torch.testing.assert_close(half, latents.encode(codec, shown), atol=2e-3, rtol=2e-3)


def test_pictures_are_encoded_once_for_each_codec(shards, codec):
    (first, _), (again, _) = latents.make_latents(shards, codec), latents.make_latents(shards, codec)
    assert first == again and first.stat().st_mtime_ns == again.stat().st_mtime_ns
    torch.manual_seed(1)
    assert latents.make_latents(shards, vae.make_vae())[0] != first


def test_captions_of_scenes_say_what_the_photos_show(shards):
    scenes = dataset.load_scenes(shards)
    photographed = [dataset.photograph_subject(seed, 2, 0.5) for seed in range(4)]
    labels = np.concatenate([labels for _, _, labels, _ in photographed])
    assert len(scenes) == 8
    for scene, (noun, _, view) in zip(scenes, labels, strict=True):
        assert scene.traits.class_noun == ("toy" if noun < 0 else dataset.CLASS_NOUNS[noun])
        if view >= 0:
            assert captions.view_word(scene.shot.azimuth, scene.shot.elevation) == VIEW_NAMES[view]
    assert any(noun < 0 for noun, *_ in labels) and any(noun >= 0 for noun, *_ in labels)


def test_mirror_images_get_captions_of_the_other_side():
    scene = dataset.Scene(dataset.make_subject(3, "dog").traits, dataset.Shot(90.0, 10.0))
    z = torch.stack([torch.zeros(1, 16, 8, 8), torch.ones(1, 16, 8, 8)]).half()
    torch.manual_seed(0)
    drawn, tokens = latents.draw_latents(latents.LatentPictures(z, [scene]), 200, unconditional=0.2, generic=0.0)
    side = sides.side(tokens, network.make_tokenizer())
    is_mirrored = drawn[:, 0, 0, 0] == 1
    assert (side[is_mirrored] <= 0).all() and (side[~is_mirrored] >= 0).all()
    assert 0.3 < side.abs().mean() < 0.7  # 0.8 with a caption, of which 0.92 name a view and 0.6 of these the side.
    empty = (tokens == network.make_tokenizer().convert_tokens_to_ids("photo")).sum(1) == 0
    assert 0.1 < empty.float().mean() < 0.3


def test_views_are_told_in_channels():
    tokenizer = network.make_tokenizer()
    prompts = ["a duck, left side view", "a duck, overhead back right view", "a duck"]
    told = sides.hints(tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids, tokenizer)
    assert told.tolist() == [[1, 0, 1, 0, 0], [-1, 0, 0, 1, 1], [0, 0, 0, 0, 0]]
    z = torch.randn(3, 16, 2, 3)
    channels = sides.with_hints(z, told)
    assert torch.equal(channels[:, :16], z)
    assert channels[1, 16].tolist() == [[1, 0, -1], [1, 0, -1]] and (channels[1, 19:] == 1).all()
    assert (channels[1, 17:19] == 0).all() and (channels[2, 16:] == 0).all()


@pytest.mark.slow
def test_the_guide_learns_and_goes_on_where_it_was(tmp_path, pictures):
    config = train_unet.TrainUnetConfig(tmp_path, batch_size=8, dtype="bfloat16", matrix_learning_rate=3e-3)

    def losses(learner, steps):
        result = []
        for _ in range(steps):
            torch.manual_seed(learner.course.step)
            result.append(learner.step(*latents.draw_latents(pictures, 8, 0.1, 0.05)))
        return result

    learner = train_unet.Learner(config)
    learner.course.step = 100  # Past the warm-up.
    start = losses(learner, 3)
    learner.course.save()
    resumed = train_unet.Learner(replace(config, seed=0))
    end = losses(learner, 2)
    assert losses(resumed, 2) == end and end[-1] < 0.9 * start[0]
    for one, other in zip(learner.course.modules.parameters(), resumed.course.modules.parameters(), strict=True):
        assert torch.equal(one, other)


def test_v_is_what_is_learnt(tmp_path, pictures, monkeypatch):
    learner = train_unet.Learner(train_unet.TrainUnetConfig(tmp_path, batch_size=2))
    z, tokens = latents.draw_latents(pictures, 2, 0.0, 0.0)
    seen = {}

    def perfect(inputs, t, text):
        abar = learner.alphas_cumprod[t][:, None, None, None]
        seen["channels"] = inputs.shape[1]
        eps = (inputs[:, :16] - abar.sqrt() * z) / (1 - abar).sqrt()
        return type("Output", (), {"sample": abar.sqrt() * eps - (1 - abar).sqrt() * z})

    monkeypatch.setattr(learner, "_network", perfect)
    assert learner.loss(z, tokens).item() == pytest.approx(0, abs=1e-8) and seen["channels"] == 16 + sides.HINTS


def test_a_latent_guide_is_a_guide(guide_folder, codec):
    guide = ToyboxGuideConfig(model=guide_folder).setup(device="cpu")
    assert guide.prediction_type == "v_prediction" and guide.resolution == 64 and guide.tells_sides
    rgb = torch.rand(2, 3, 64, 64, requires_grad=True)
    z = guide.encode(rgb)
    z.square().sum().backward()
    assert z.shape == (2, 16, 8, 8) and rgb.grad.abs().sum() > 0
    through = codec.decode(codec.encode(rgb * 2 - 1).latent).sample / 2 + 0.5
    torch.testing.assert_close(guide.decode(z), through.clamp(0, 1))
    asked = Conditioning.of(guide, [f"a photo of a sks dog, {hand} side view" for hand in ("left", "right")])
    assert asked.text[:, -1, :5].tolist() == [[1, 0, 1, 0, 0], [-1, 0, 1, 0, 0]]
    drawn = translate(guide, rgb.detach(), asked, TranslationConfig(steps=2))
    assert drawn.shape == rgb.shape and drawn.isfinite().all()
    assert "vae" in guide.modules() and guide.fingerprint() == guide.fingerprint()


def test_a_released_latent_guide_is_the_trained_one_at_half_precision(guide_folder, tmp_path):
    release.main(release.ReleaseConfig(guide=guide_folder, weights=tmp_path))
    for file in ("unet/config.json", "vae/config.json"):
        assert str(guide_folder) not in (tmp_path / "guide" / file).read_text()
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < 32e6
    one, other = (ToyboxGuideConfig(model=path).setup(device="cpu") for path in (guide_folder, tmp_path / "guide"))
    rgb, text = torch.rand(1, 3, 64, 64), one.embed(["a photo of a red dog, side view"])
    z = other.encode(rgb)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z, one.encode(rgb), atol=0.05, rtol=0)
    t = torch.tensor([500])
    torch.testing.assert_close(other.predict_noise(z, t, text), one.predict_noise(z, t, text), atol=0.02, rtol=0)


@pytest.mark.slow
def test_everything_from_photographs_to_a_guide_in_one_command(tmp_path, codec, monkeypatch):
    codec.save_pretrained(tmp_path / "vae")
    data = dataset.DatasetConfig(tmp_path / "data", 2, 2, 2, toy_share=0.5, workers=1)
    sheets = []
    monkeypatch.setattr(train_unet, "sample_sheet", lambda *args, device: sheets.append((*args, device)))
    config = train_unet.TrainUnetConfig(tmp_path / "unet", vae=tmp_path / "vae", data=data, num_images=8, batch_size=4)
    train_unet.main(config)
    assert sheets == [(tmp_path / "unet" / "guide", tmp_path / "unet" / "samples.png", "cpu")]
    assert "8 images" in (tmp_path / "unet" / "log.txt").read_text()
    ToyboxGuideConfig(model=tmp_path / "unet" / "guide").setup(device="cpu").embed(["a photo of a red toy"])
