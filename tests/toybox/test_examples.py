"""The bundled photos show the toy that fidelity is measured against."""

import numpy as np
from PIL import Image

from db3d_nerfstudio.toybox import examples
from db3d_nerfstudio.toybox.subjects import make_subject
from db3d_nerfstudio.words import parse_subject


def test_the_bundled_photos_are_those_of_the_bundled_toy():
    folder, prompt = examples.default_subject()
    shipped = [np.array(Image.open(path)).astype(int) for path in sorted(folder.glob("*.png"))]
    taken = examples.photograph(examples.default_truth(), examples.DEFAULT_SEED)
    assert 4 <= len(shipped) <= 6 and len(shipped) == len(taken)
    assert max(np.abs(one - np.array(other)).max() for one, other in zip(shipped, taken, strict=True)) <= 1
    assert parse_subject(prompt).class_noun == examples.DEFAULT_TRAITS.class_noun


def test_photos_of_a_seed_are_written_with_the_command_that_uses_them(tmp_path, capsys):
    examples.main(examples.PhotographConfig(tmp_path / "photos", seed=3, class_noun="mug"))
    first = np.array(Image.open(tmp_path / "photos" / "00.png"))
    assert np.array_equal(first, np.array(examples.photograph(make_subject(3, "mug"), 3)[0]))
    assert '--prompt "a photo of a sks mug"' in capsys.readouterr().out


def test_photos_come_from_the_front_half():
    assert all(abs(azimuth) < 84 for azimuth in examples.AZIMUTHS)
