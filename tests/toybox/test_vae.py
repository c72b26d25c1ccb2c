"""The codec: diffusers loads it, it learns, and what it learns is smooth where it is asked to be."""

import numpy as np
import pytest
import torch

from db3d_nerfstudio.toybox import dataset, train_vae, vae


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    data = dataset.DatasetConfig(folder / "data", 4, 2, 4, workers=1)
    held_out = dataset.DatasetConfig(folder / "data", 2, 2, 2, train_vae.FIRST_HELD_OUT_SEED, workers=1)
    config = train_vae.TrainVaeConfig(folder, data=data, held_out=held_out, num_images=8 * 16, batch_size=8)
    train_vae.main(config)
    return folder


def test_the_codec_learns_and_plain_diffusers_loads_it(trained):
    from diffusers import AutoencoderDC

    codec = AutoencoderDC.from_pretrained(trained / "vae")
    images = dataset.load_images(sorted((trained / "data").glob("subjects_00000000*.npz")))
    learnt, untrained = train_vae.quality(codec, images), train_vae.quality(vae.make_vae(), images)
    assert learnt["psnr"] > untrained["psnr"] + 1
    x = train_vae.to_pictures(images)
    z = codec.encode(x).latent * codec.config.scaling_factor
    assert z.shape == (8, vae.CHANNELS, 8, 8) and z.std().item() == pytest.approx(1, rel=0.25)
    assert "PSNR" in (trained / "log.txt").read_text()


def test_every_term_of_the_loss_counts():
    torch.manual_seed(0)
    codec, x = vae.make_vae(), torch.rand(4, 3, 64, 64) * 2 - 1
    noise = torch.randn(4, vae.CHANNELS, 8, 8)
    nothing = vae.vae_loss(codec, x, 0 * noise, 0.0, 0.0)
    assert torch.equal(nothing, vae.picture_loss(codec.decode(codec.encode(x).latent).sample, x))
    z = codec.encode(x).latent
    more = vae.vae_loss(codec, x, 0 * noise, 2.0, 0.0) - nothing
    torch.testing.assert_close(more, z.square().mean())
    assert vae.vae_loss(codec, x, 0 * noise, 0.0, 1.0) > nothing != vae.vae_loss(codec, x, noise, 0.0, 0.0)


def test_the_loss_of_pictures_sees_edges():
    flat, striped = torch.full((1, 3, 8, 8), 0.5), torch.full((1, 3, 8, 8), 0.5)
    striped[..., ::2] *= -1
    true = torch.zeros(1, 3, 8, 8)
    assert vae.picture_loss(true, true) == 0
    assert vae.picture_loss(flat, true).item() == pytest.approx(0.5 + 2 * 0.25)
    assert vae.picture_loss(striped, true).item() == pytest.approx(0.5 + 2 * 0.25 + 0.5 * 1.0)


def test_psnr_of_a_known_error():
    true = torch.zeros(2, 3, 8, 8)
    made = true + torch.tensor([0.2, 2.0])[:, None, None, None]
    torch.testing.assert_close(vae.psnr(made, true), torch.tensor([20.0, -10 * np.log10(0.25)], dtype=torch.float32))


def test_pictures_are_drawn_mirrored_half_of_the_time_and_the_data_stay_as_they_are():
    images = np.zeros((3, 8, 8, 3), np.uint8)
    images[:, :, :4] = 255
    torch.manual_seed(0)
    (drawn,) = train_vae.draw_pictures(images, 400)
    light_left = drawn[:, 0, 0, 0] > 0
    assert 0.4 < light_left.float().mean() < 0.6 and images[:, :, :4].min() == 255
    assert drawn.min() == -1 and drawn.max() == 1


def test_the_encoder_stays_when_the_decoder_alone_is_trained(trained, tmp_path):
    from diffusers import AutoencoderDC

    data = dataset.DatasetConfig(trained / "data", 4, 2, 4, workers=1)
    held_out = dataset.DatasetConfig(trained / "data", 2, 2, 2, train_vae.FIRST_HELD_OUT_SEED, workers=1)
    config = train_vae.TrainVaeConfig(
        tmp_path, data=data, held_out=held_out, num_images=8, batch_size=4, start_from=trained / "vae",
        decoder_only=True,
    )  # fmt: skip
    train_vae.main(config)
    before, after = (AutoencoderDC.from_pretrained(folder / "vae") for folder in (trained, tmp_path))
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(before.encode(x).latent, after.encode(x).latent)
    assert before.config.scaling_factor == after.config.scaling_factor
    assert not torch.equal(before.decode(torch.ones(1, 16, 8, 8)).sample, after.decode(torch.ones(1, 16, 8, 8)).sample)
