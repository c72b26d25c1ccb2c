"""The procedural world: seeds, cameras, captions, shards."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from db3d_nerfstudio.cameras import Views, image_rays, orbit_cameras
from db3d_nerfstudio.toybox import captions, dataset, network
from db3d_nerfstudio.toybox.scene import FOV, Shot, Studio, camera_rays, draw_shot
from db3d_nerfstudio.toybox.shapes import TOY_RADIUS, pattern_mask
from db3d_nerfstudio.toybox.subjects import CLASS_NOUNS, PATTERNS, Traits, draw_traits, make_subject
from db3d_nerfstudio.toybox.toys import CLASSES, PALETTE
from db3d_nerfstudio.words import nearest_prompts


@pytest.mark.parametrize("noun", CLASS_NOUNS)
def test_a_subject_is_a_seed_and_touches_its_sphere(noun):
    one, same, other = (make_subject(seed, noun).mesh() for seed in (5, 5, 6))
    assert np.array_equal(one.vertices, same.vertices)
    assert one.vertices.shape != other.vertices.shape or not np.allclose(one.vertices, other.vertices)
    assert np.linalg.norm(one.vertices, axis=1).max() == pytest.approx(TOY_RADIUS)


@pytest.mark.parametrize("noun", CLASS_NOUNS)
def test_front_and_back_can_be_told_apart(noun):
    studio = Studio(make_subject(11, noun))
    (front, _), (back, _) = (studio.render(Shot(azimuth, 10.0)) for azimuth in (0.0, 180.0))
    assert np.abs(front - back[:, ::-1]).mean() > 0.01  # A toy of equal ends would look like its mirror image.


def test_an_unknown_class_noun_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="'sofa'.*dog"):
        make_subject(0, "sofa")


def test_every_trait_shows():
    plain = Traits("dog", "red", "blue", "ears")
    base = Studio(make_subject(3, traits=plain)).photograph(Shot(40.0, 20.0))
    changes = [
        Traits("dog", "green", "blue", "ears"),
        Traits("dog", "red", "white", "ears"),
        *(Traits("dog", "red", "blue", "ears", pattern=pattern) for pattern in PATTERNS),
        Traits("dog", "red", "blue", "ears", state="sitting"),
        Traits("dog", "red", "blue", "ears", accessory="hat", accessory_color="yellow"),
        Traits("dog", "red", "blue", "ears", accessory="scarf", accessory_color="yellow"),
    ]
    for traits in changes:
        assert (Studio(make_subject(3, traits=traits)).photograph(Shot(40.0, 20.0)) != base).any(-1).mean() > 0.01


def test_main_color_is_what_the_photo_shows_most():
    image, coverage = Studio(make_subject(3, traits=Traits("mug", "green", "red", "badge"))).render(Shot(90.0, 10.0))
    mean = image[coverage > 0.99].mean(0)
    assert mean.argmax() == np.argmax(PALETTE["green"])


def test_the_cameras_of_world_and_nerf_are_the_same():
    cameras, _ = orbit_cameras(4, elevation=25.0, radius=3.0, fov=FOV, resolution=16)
    rays = image_rays(cameras)
    for index, azimuth in enumerate((0.0, 90.0, 180.0, 270.0)):
        eye, directions = camera_rays(Shot(azimuth, 25.0, radius=3.0), 16)
        mine = slice(index * 256, (index + 1) * 256)
        torch.testing.assert_close(rays.origins[mine][0].double(), torch.from_numpy(eye), atol=1e-5, rtol=0)
        torch.testing.assert_close(rays.directions[mine].double(), torch.from_numpy(directions.reshape(-1, 3)),
                                   atol=1e-5, rtol=0)  # fmt: skip


def test_light_ambient_and_background_change_the_photo():
    studio = Studio(make_subject(2, "car"))
    base = studio.render(Shot(30.0, 20.0))[0]
    others = (
        Shot(30.0, 20.0, light=(0.0, 0.0, 1.0)),
        Shot(30.0, 20.0, ambient=0.9),
        Shot(30.0, 20.0, floor=(0.0, 0.5, 0.0)),
        Shot(30.0, 20.0, radius=3.3),
    )
    assert all(np.abs(studio.render(shot)[0] - base).mean() > 1e-3 for shot in others)


def test_patterns_cover_part_of_the_surface():
    points = np.random.default_rng(0).uniform(-1, 1, (4000, 3))
    for pattern in PATTERNS:
        assert 0.1 < pattern_mask(pattern, points).mean() < 0.6
    with pytest.raises(ValueError, match="striped"):
        pattern_mask("checked", points)


def test_captions_stay_in_the_vocabulary_and_never_use_an_identifier():
    tokenizer, rng = network.make_tokenizer(), np.random.default_rng(0)
    for seed in range(300):
        traits, shot = draw_traits(np.random.default_rng(seed)), draw_shot(rng)
        text = captions.draw_caption(rng, traits, shot)
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids and not set(text.split()) & set(captions.IDENTIFIERS), text
        longest = captions.caption(traits, "on the beach", "overhead")
        assert len(tokenizer(longest).input_ids) <= captions.MAX_TOKENS, longest
    assert all(tokenizer.convert_tokens_to_ids(word) != tokenizer.unk_token_id for word in captions.IDENTIFIERS)


def test_prompts_change_the_toy_as_their_captions_say():
    plain = Traits("dog", "purple", "pink", "ears")
    for seed in range(100):
        traits = draw_traits(np.random.default_rng(seed), "dog")
        changes = captions.asked_changes(captions.caption(traits, "on the beach", "side"), plain)
        assert replace(plain, **changes) == traits
    assert captions.asked_changes("a photo of a dog on the beach", plain) == {}
    for sentence in ("a photo of a dog, wearing a red hat", "a photo of a toy wearing a red hat."):
        assert captions.asked_changes(sentence, plain) == {"accessory": "hat", "accessory_color": "red"}, sentence
    assert captions.asked_changes("a photo of a red cat", plain) == {}, "it is about something else"
    assert captions.asked_changes("a photo of a purple car", Traits("car", "red", "blue", "roof")) == {
        "main_color": "purple"
    }


def test_a_changed_toy_keeps_its_shape():
    toy, changed = make_subject(3, "dog"), make_subject(3, "dog", changes={"main_color": "green"})
    assert changed.traits == replace(toy.traits, main_color="green") != toy.traits
    assert np.array_equal(toy.mesh().vertices, changed.mesh().vertices)


@pytest.mark.parametrize(
    "azimuth, elevation, word",
    [
        (0.0, 20.0, "front"),
        (-44.0, 0.0, "front"),
        (46.0, 0.0, "side"),
        (270.0, 0.0, "side"),
        (181.0, 30.0, "back"),
        (10.0, 61.0, "overhead"),
    ],
)
def test_view_words(azimuth, elevation, word):
    assert captions.view_word(azimuth, elevation) == word


def test_a_colour_that_hardly_shows_is_not_asked_for(monkeypatch):
    house = Studio(make_subject(5, "house"))
    assert house.main_share(Shot(0.0, 84.0)) < 0.2 < house.main_share(Shot(90.0, 5.0))  # From above it is all roof.
    assert all(row[1] >= 0 for row in dataset.photograph_subject(40, 3)[2])
    monkeypatch.setattr(dataset, "LEAST_MAIN_SHARE", 0.99)
    assert all(row[1] == -1 for row in dataset.photograph_subject(40, 3)[2])


def test_captions_name_the_directions_that_prompts_name():
    for azimuth in np.arange(-180.0, 540.0, 17.0):
        for elevation in (10.0, 80.0):
            views = Views(*(torch.tensor([number]) for number in (elevation, float(azimuth), 3.0, 40.0)))
            (prompt,) = nearest_prompts("a dog", views, sided=True)
            assert prompt == f"a dog, {captions.direction(float(azimuth), elevation)} view"


def test_from_its_left_a_toy_looks_to_the_left_of_the_picture():
    subject = make_subject(5, "dog")
    left = Studio(subject).render(Shot(90.0, 10.0))[1]
    muzzle = left[:32].sum(0)  # The head is at the top.
    assert captions.direction(90.0, 10.0) == "left side"
    assert muzzle[:32].sum() > 1.3 * muzzle[32:].sum()


def test_views_are_called_by_words_and_by_directions():
    rng = np.random.default_rng(0)
    said = {captions.draw_view_name(rng, Shot(90.0, 10.0)) for _ in range(20)}
    assert said == {"side", "left side"}
    assert {captions.draw_view_name(rng, Shot(10.0, 61.0)) for _ in range(20)} == {None}


def test_views_near_a_border_are_left_unnamed():
    assert not captions.is_clear_view(Shot(47.0, 10.0)) and not captions.is_clear_view(Shot(0.0, 61.0))
    assert captions.is_clear_view(Shot(30.0, 10.0)) and captions.is_clear_view(Shot(47.0, 80.0))


def test_shards_are_made_once_and_loaded_as_written(tmp_path):
    config = dataset.DatasetConfig(tmp_path, num_subjects=4, views_per_subject=2, subjects_per_shard=2, workers=1)
    paths = dataset.make_dataset(config)
    paths[1].unlink()
    kept = paths[0].stat().st_mtime_ns
    pictures = dataset.load_dataset(dataset.make_dataset(config))
    assert paths[0].stat().st_mtime_ns == kept and not list(tmp_path.glob("*.tmp"))
    images, texts, labels, _ = dataset.photograph_subject(3, 2)
    assert np.array_equal(pictures.images[6:], np.stack(images)) and pictures.captions[6:] == texts
    assert np.array_equal(pictures.labels[6:], np.array(labels))


def test_a_toy_of_no_known_kind_has_a_front_and_is_its_own_mirror_image():
    for seed in range(6):
        studio = Studio(make_subject(seed, "toy"))
        (front, seen), (back, _) = (studio.render(Shot(azimuth, 10.0)) for azimuth in (0.0, 180.0))
        assert np.abs(front - back[:, ::-1]).mean() > 0.005
        (left, _), (right, _) = (studio.render(Shot(azimuth, 10.0)) for azimuth in (70.0, -70.0))
        assert np.abs(left - right[:, ::-1]).mean() < 0.004
        assert seen.mean() > 0.02
    assert "toy" not in CLASS_NOUNS and all(
        draw_traits(np.random.default_rng(s)).class_noun != "toy" for s in range(99)
    )


def test_shards_with_such_toys_are_files_of_their_own(tmp_path):
    plain, mixed = (dataset.DatasetConfig(tmp_path, 8, 1, 8, toy_share=share, workers=1) for share in (0.0, 0.5))
    one, other = (dataset.load_dataset(dataset.make_dataset(config)) for config in (plain, mixed))
    assert (one.labels[:, 0] >= 0).all() and 0 < (other.labels[:, 0] < 0).sum() < 8
    assert not np.array_equal(one.images, other.images)


def test_a_share_of_the_subjects_is_decorated(tmp_path):
    plain, most = (dataset.DatasetConfig(tmp_path, 8, 1, 8, decorated_share=share, workers=1) for share in (0.0, 0.9))
    one, other = (dataset.load_scenes(dataset.make_dataset(config)) for config in (plain, most))
    patterns = [sum(scene.traits.pattern is not None for scene in scenes) for scenes in (one, other)]
    assert patterns[0] < 4 < 6 <= patterns[1]
    for scene in other:
        traits = scene.traits
        assert traits.pattern is None or traits.accessory is not None or not CLASSES[traits.class_noun].accessories
        assert traits.accessory_color not in (traits.main_color, traits.accent_color)
