"""The guide's batches: pictures are encoded once, and captions say what they and their mirror images show."""

import numpy as np
import torch

from db3d_nerfstudio.toybox import captions, dataset, latents, network, sides, vae
from db3d_nerfstudio.words import VIEW_NAMES


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


def test_captions_are_dropped_for_guidance():
    tokens, empty = torch.zeros(400, 5, dtype=torch.long), torch.full((5,), -7)
    chosen = latents.drop_captions(tokens, empty, 0.25)
    assert ((chosen == -7).all(1) | (chosen == 0).all(1)).all()
    assert 0.15 < (chosen == -7).all(1).float().mean() < 0.35


def test_a_share_of_captions_says_toy():
    tokenizer = network.make_tokenizer()
    tokens = tokenizer(["a photo of a red dog, side view"] * 400, return_tensors="pt").input_ids
    said = tokenizer.batch_decode(latents.say_toy(tokens, 0.25), skip_special_tokens=True)
    assert 60 < sum(text == "a photo of a red toy , side view" for text in said) < 140
    assert sum(text == "a photo of a red dog , side view" for text in said) == 400 - said.count(
        "a photo of a red toy , side view"
    )
