"""The loss of reconstruction: pixels, pixels with alpha, and the perceptual term of whole pictures."""

import pytest
import torch
from tiny import GaussianGuideConfig
from tiny_model import SIZE, build, guided_batch, pixels, solid


def test_reconstruction_by_hand():
    """A red ball in front of white: from grey 0.25 red differs by 0.75 + 2 * 0.25, white by 3 * 0.75."""
    model = solid(build(recon_loss_mult=2.0))
    rays, _ = guided_batch(1)
    outputs = model(rays)
    inside = outputs["accumulation"].mean().item()
    expected = (inside * 1.25 + (1 - inside) * 2.25) / 3
    assert model.get_loss_dict(outputs, pixels(rays))["recon_loss"].item() == pytest.approx(2 * expected, rel=0.02)


def test_pixels_with_alpha_are_compared_without_their_background():
    model = solid(build())
    rays, _ = guided_batch(1)
    outputs = model(rays)
    colour = outputs["albedo"] / outputs["accumulation"].clamp_min(1e-6)
    image = torch.cat([colour, outputs["accumulation"]], -1).detach()
    assert model.get_loss_dict(outputs, {"image": image})["recon_loss"] < 1e-5


def test_the_perceptual_term_is_the_difference_of_z():
    """A guide whose z is twice the image, so that the term is the difference of whole pictures, doubled."""
    guide = GaussianGuideConfig(resolution=SIZE, scale=2.0)
    model = solid(build(guide=guide, recon_loss_mult=1.0, perceptual_loss_mult=3.0))
    rays, _ = guided_batch(1)
    batch = {**pixels(rays), "picture_shape": (SIZE, SIZE)}
    losses = model.get_loss_dict(model(rays), batch)
    assert losses["perceptual_loss"].item() == pytest.approx(3 * 2 * losses["recon_loss"].item(), rel=1e-4)
    assert "perceptual_loss" not in model.get_loss_dict(model(rays), pixels(rays)), "pixels are no picture"
    assert "perceptual_loss" not in (plain := build()).get_loss_dict(plain(rays), batch)
    model.eval()
    assert set(model.get_loss_dict(model(rays), batch)) == {"recon_loss"}


def test_a_whole_picture_with_alpha_is_compared_in_front_of_one_colour(monkeypatch):
    model, seen = solid(build(perceptual_loss_mult=1.0)), []
    encode = model.distillation.guide.encode
    monkeypatch.setattr(model.distillation.guide, "encode", lambda image: seen.append(image) or encode(image))
    rays, _ = guided_batch(1)
    empty = torch.zeros(len(rays), 4)
    model.get_loss_dict(model(rays), {"image": empty, "picture_shape": (SIZE, SIZE)})
    picture = seen[0].flatten(2)
    assert seen[0].shape == (1, 3, SIZE, SIZE) and torch.allclose(picture, picture[..., :1].expand_as(picture))
