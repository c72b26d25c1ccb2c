"""The examiner: what photos are labelled with, that it learns it, and that the one that ships names it."""

import numpy as np
import pytest
import torch

from db3d_nerfstudio.toybox import dataset, examiner, release, train_examiner
from db3d_nerfstudio.toybox.scene import Shot, Studio
from db3d_nerfstudio.toybox.subjects import Traits, make_subject


@pytest.mark.parametrize(
    "azimuth, hand", [(90.0, "left"), (-40.0, "right"), (230.0, "right"), (10.0, None), (175.0, None)]
)
def test_a_view_shows_a_hand_unless_it_is_straight(azimuth, hand):
    scene = dataset.Scene(Traits("dog", "red", "blue", "ears", pattern="striped", accessory="hat"), Shot(azimuth, 10.0))
    shown, pattern, accessory = examiner.label(scene)
    assert shown == (-1 if hand is None else examiner.HEADS["hand"].index(hand))
    assert examiner.HEADS["pattern"][pattern] == "striped" and examiner.HEADS["accessory"][accessory] == "hat"


def test_mirror_images_show_the_other_hand():
    rgb, labels = torch.arange(3.0).expand(3, 3, 1, 3), torch.tensor([[0, 1, 2], [1, 0, 0], [-1, 2, 1]])
    mirrored, told = train_examiner.mirror(rgb, labels, torch.tensor([True, False, True]))
    assert told.tolist() == [[1, 1, 2], [1, 0, 0], [-1, 2, 1]]
    assert torch.equal(mirrored[0], rgb[0].flip(-1)) and torch.equal(mirrored[1], rgb[1])


def photographs(shot: Shot, traits: Traits | None = None) -> torch.Tensor:
    studios = [Studio(make_subject(seed, traits=traits)) for seed in range(6_000_000, 6_000_012)]
    photos = np.stack([studio.photograph(shot) for studio in studios])
    return torch.from_numpy(photos).permute(0, 3, 1, 2).float() / 255


def test_the_shipped_examiner_names_what_true_photos_show():
    examined = examiner.load_examiner()
    for hand, azimuth in (("left", 80.0), ("right", -80.0)):
        said = examined.look(photographs(Shot(azimuth, 15.0)))
        assert examiner.names(said["hand"], "hand").count(hand) >= 11
    bare = Traits("dog", "red", "white", "ears")
    hat = Traits("dog", "red", "white", "ears", accessory="hat", accessory_color="blue")
    for traits, accessory in ((bare, None), (hat, "hat")):
        said = examined.look(photographs(Shot(30.0, 15.0), traits))
        assert examiner.names(said["accessory"], "accessory").count(accessory) >= 9


def test_the_examiner_is_trained_measured_and_saved(tmp_path, capsys):
    data, held_out = (dataset.DatasetConfig(tmp_path, 2, 2, 2, seed, workers=1) for seed in (0, 2))
    config = train_examiner.TrainExaminerConfig(tmp_path, data, held_out, num_images=16, batch_size=4)
    train_examiner.main(config)
    assert "'hand':" in capsys.readouterr().out
    trained, shipped = examiner.load_examiner(tmp_path / "model.safetensors"), examiner.Examiner().eval()
    rgb = torch.rand(1, 3, 64, 64)
    assert not torch.equal(trained.image_tower(rgb), shipped.image_tower(rgb))
    release.main(release.ReleaseConfig(examiner=tmp_path / "model.safetensors", weights=tmp_path / "weights"))
    released = examiner.load_examiner(tmp_path / "weights" / "examiner" / "model.safetensors")
    torch.testing.assert_close(released.look(rgb)["hand"], trained.look(rgb)["hand"], atol=0.02, rtol=0)
    config.start_from, config.num_images = tmp_path / "model.safetensors", 4
    train_examiner.main(config)
    assert not torch.equal(examiner.load_examiner(config.start_from).image_tower(rgb), trained.image_tower(rgb))
