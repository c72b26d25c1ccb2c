"""Fields of the guide's z: maps from and to colours against codecs whose maps are known, and a NeRF that trains."""

import dataclasses

import pytest
import torch
from tiny import GaussianGuide, GaussianGuideConfig
from tiny_model import FIELD, NO_LOSSES, SIZE, build, guided_batch, losses_of, pixels, solid
from torch.nn import functional as F

from db3d_nerfstudio.diffusion.sds import SDSConfig
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.evaluation.metrics.renders import render_orbit
from db3d_nerfstudio.nerf.background import BackgroundConfig
from db3d_nerfstudio.nerf.colors import RGB, Latents, color_noise, fit_affine
from db3d_nerfstudio.nerf.shading import ShadingConfig

MIXING = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
OFFSET = torch.tensor([0.3, -0.2, 0.1, 1.0])
COLORS = torch.rand(5, 3, generator=torch.Generator().manual_seed(1))


@dataclasses.dataclass
class MixingGuideConfig(GaussianGuideConfig):
    """Configuration of a linear Stable Diffusion."""

    _target: type = dataclasses.field(default_factory=lambda: MixingGuide)
    resolution: int = 2 * SIZE


class MixingGuide(GaussianGuide):
    """Four channels that mix the mean colours of 2 x 2 pixels."""

    def encode(self, rgb):
        return torch.einsum("dc,bdhw->bchw", MIXING, F.avg_pool2d(rgb, 2)) + OFFSET[:, None, None]


class PatchGuide(GaussianGuide):
    """A codec that loses nothing: patches of 4 x 4 pixels become channels."""

    def encode(self, rgb):
        return F.pixel_unshuffle(rgb * 2 - 1, 4)


def fitted(guide, channels):
    latents = Latents(channels)
    latents.fit(guide)
    return latents


def unfitted(**changes):
    """A model of the guide's z whose guide is not loaded; it is as large as the guide's grid."""
    field, sds = dataclasses.replace(FIELD, latent_channels=4), SDSConfig(guidance_scale=1.0)
    return build(**{"field": field, "guide": MixingGuideConfig(), "sds": sds} | changes)


def latent(**changes):
    """The same, fitted to its guide."""
    model = unfitted(**changes)
    model.field.colors.fit(model.distillation.guide)
    return model


# The maps.


def test_an_affine_map_is_recovered_and_the_smallest_where_there_is_a_choice():
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(fit_affine(COLORS, COLORS @ MIXING + OFFSET), torch.cat([MIXING, OFFSET[None]]))
    twice = fit_affine(torch.cat([x, x], -1), x)
    torch.testing.assert_close(twice, torch.cat([torch.eye(4) / 2, torch.eye(4) / 2, torch.zeros(1, 4)]))


def test_noise_has_the_spectrum_of_photographs():
    """Amplitudes at half the frequency are twice as large."""
    noise = color_noise(16, 64, torch.Generator().manual_seed(0))
    assert noise.shape == (16, 3, 64, 64) and noise.min() >= 0 and noise.max() <= 1
    assert noise.mean().item() == pytest.approx(0.5, abs=0.05) and noise.std() > 0.2
    amplitude = torch.fft.rfft2(noise).abs().square().mean((0, 1)).sqrt()
    assert (amplitude[0, 4] / amplitude[0, 8]).item() == pytest.approx(2, rel=0.25)


def test_a_mixing_codec_is_recovered_exactly():
    colors = fitted(MixingGuideConfig().setup(), 4)
    z = COLORS @ MIXING + OFFSET
    torch.testing.assert_close(colors.from_rgb(COLORS), z, atol=1e-5, rtol=0)
    torch.testing.assert_close(colors.to_rgb(z, torch.ones(5, 1)), COLORS, atol=1e-5, rtol=0)


def test_patches_show_their_mean_colour():
    """The embedded guide's z: not only plain patches, of which the corners of the cube alone would tell."""
    guide = PatchGuide(GaussianGuideConfig(resolution=32))
    colors, image = fitted(guide, 48), torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    z = guide.encode(image).permute(0, 2, 3, 1).reshape(-1, 48)
    mean = F.avg_pool2d(image, 4).permute(0, 2, 3, 1).reshape(-1, 3)
    torch.testing.assert_close(colors.to_rgb(z, torch.ones(64, 1)), mean, atol=1e-4, rtol=0)
    plain = guide.encode(COLORS[:, :, None, None].expand(-1, -1, 4, 4))[:, :, 0, 0]
    torch.testing.assert_close(colors.from_rgb(COLORS), plain, atol=1e-5, rtol=0)


def test_thin_matter_is_a_share_of_dense_matter_and_never_brighter_than_light():
    """Colours are composited before they are mapped: half of z and half of the matter are half of the colour."""
    colors = fitted(MixingGuideConfig().setup(), 4)
    z, half = COLORS @ MIXING + OFFSET, torch.full((5, 1), 0.5)
    torch.testing.assert_close(colors.to_rgb(z / 2, half), COLORS / 2, atol=1e-5, rtol=0)
    wild = colors.to_rgb(100 * z, half)
    assert wild.min() >= 0 and wild.max() <= 0.5


def test_fitting_is_a_function_of_the_guide():
    first, second = (fitted(MixingGuideConfig().setup(), 4) for _ in range(2))
    state = torch.random.get_rng_state()
    second.fit(MixingGuideConfig().setup())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one, other) for one, other in zip(first.buffers(), second.buffers(), strict=True))


def test_another_number_of_channels_is_refused():
    with pytest.raises(UserError, match="latent-channels 4"):
        Latents(3).fit(MixingGuideConfig().setup())


def test_z_is_handed_over_as_it_is_and_in_the_guides_size():
    guide = MixingGuideConfig().setup()
    colors, z = fitted(guide, 4), torch.randn(2, 4, SIZE, SIZE)
    torch.testing.assert_close(colors.encode(guide, z), z)
    assert colors.encode(guide, z[:, :, ::2, ::2]).shape == z.shape


def test_red_green_and_blue_stay_what_they_are():
    colors, guide = RGB(), MixingGuideConfig().setup()
    assert colors.to_rgb(COLORS, torch.ones(5, 1)) is COLORS and colors.from_rgb(COLORS) is COLORS
    image = torch.rand(1, 3, 2 * SIZE, 2 * SIZE)
    torch.testing.assert_close(colors.encode(guide, image), guide.encode(image))
    assert list(colors.state_dict()) == []


# The NeRF.


def test_light_on_latents_is_refused():
    with pytest.raises(UserError, match="--pipeline.model.shading.lambertian-prob 0"):
        latent(shading=ShadingConfig())


def test_a_nerf_of_z_moves_to_the_guides_mean_without_its_encoder(monkeypatch):
    model = latent(losses=NO_LOSSES)
    monkeypatch.setattr(MixingGuide, "encode", None)
    optimizer = torch.optim.Adam(model.field.parameters(), lr=0.02)
    for step in range(100):
        optimizer.zero_grad()
        sum(losses_of(model, seed=step).values()).backward()
        optimizer.step()
    outputs = model(guided_batch()[0])
    inside = outputs["accumulation"][:, 0] > 0.9
    z = outputs["render"].colors[inside] / outputs["accumulation"][inside]
    assert z.shape[1] == 4 and inside.sum() > 20 and (z - 0.7).abs().mean() < 0.1


def test_backgrounds_are_plain_colours_in_z(monkeypatch):
    """Around nothing the guide sees the codec's answer to the background's colour."""
    seen = []
    monkeypatch.setattr(Latents, "encode", lambda self, guide, image: seen.append(image) or image)
    model = solid(latent(background=BackgroundConfig(color=(0.2, 0.4, 0.8), random_prob=0.0)), raw=(0.0,) * 4)
    losses_of(model)
    expected = torch.tensor([0.2, 0.4, 0.8]) @ MIXING + OFFSET
    torch.testing.assert_close(seen[0][0, :, 0, 0], expected, atol=1e-4, rtol=0)


def test_a_checkpoint_shows_colours_without_a_guide():
    trained = solid(latent(), raw=torch.tensor([0.9, 0.1, 0.2]) @ MIXING + OFFSET)
    model = solid(unfitted(), raw=(0.0,) * 4)
    model.load_state_dict(trained.state_dict())
    renders = render_orbit(model, 33, 2)
    torch.testing.assert_close(renders.albedo[0, :, 16, 16], torch.tensor([0.9, 0.1, 0.2]), atol=0.02, rtol=0)
    torch.testing.assert_close(renders.albedo[0, :, 0, 0], torch.ones(3))
    outputs = model.eval()(guided_batch()[0])
    assert all(outputs[name].shape[1] == 3 for name in ("rgb", "albedo", "shaded"))
    assert outputs["rgb"].min() >= 0 and outputs["rgb"].max() <= 1
    _, albedo = model.field.density_and_albedo(torch.zeros(1, 3))
    torch.testing.assert_close(albedo, torch.tensor([[0.9, 0.1, 0.2]]), atol=1e-4, rtol=0)
    assert "guide" not in vars(model.distillation)


def test_distilling_without_fitting_is_refused():
    with pytest.raises(RuntimeError, match="call fit"):
        losses_of(unfitted())


def test_a_second_nerf_keeps_the_maps():
    model = latent()
    losses_of(model)
    before = model.field.colors.to_rgb_map.clone()
    model.reset_field()
    assert torch.equal(model.field.colors.to_rgb_map, before) and set(losses_of(model, pixels)) >= {"recon_loss"}
