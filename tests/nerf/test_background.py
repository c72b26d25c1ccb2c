"""The learned background learns, and never becomes part of the object."""

import dataclasses

import pytest
import torch
from tiny import GaussianGuideConfig
from tiny_model import FIELD, NO_LOSSES, SIZE, build, guided_batch, losses_of, solid
from torch.nn import functional as F

from db3d_nerfstudio.diffusion.sds import SDSConfig
from db3d_nerfstudio.nerf.background import BackgroundConfig
from db3d_nerfstudio.nerf.colors import RGB

LEARNED = BackgroundConfig(learned_prob=1.0)


def background(**changes):
    torch.manual_seed(0)
    return dataclasses.replace(LEARNED, **changes).setup(colors=3)


def directions(views=1, pixels=400):
    return F.normalize(torch.randn(views, pixels, 3, generator=torch.Generator().manual_seed(1)), dim=-1)


def test_there_is_none_by_default():
    model = build()
    assert not any("background" in name for name in model.state_dict())
    assert [len(group) for group in model.get_param_groups().values()] == [2, 4]
    assert len(build(background=LEARNED).get_param_groups()["networks"]) == 8


def test_it_learns_a_room():
    """Above blue, below brown, brighter on one side: what a smooth function of the direction can show."""
    room, where = background(), directions()
    up, side = where[..., 2:], where[..., :1]
    target = torch.sigmoid(4 * up * torch.tensor([-1.0, 0.0, 1.0]) + side)
    optimizer = torch.optim.Adam(room.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        F.mse_loss(room.learned(where, RGB()), target).backward()
        optimizer.step()
    assert (room.learned(directions(pixels=100), RGB()) - target[:, :100]).abs().mean() < 0.03


def test_a_view_is_in_front_of_the_network_as_often_as_asked():
    torch.manual_seed(0)
    mixed, where = background(learned_prob=0.25, random_prob=0.5, color=(1.0, 0.0, 0.0)), directions(4000, 2)
    drawn, learned = mixed.draw(where, RGB()), mixed.learned(where, RGB())
    from_network = (drawn == learned).flatten(1).all(1)
    fixed = (drawn == torch.tensor([1.0, 0.0, 0.0])).flatten(1).all(1)
    assert from_network.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert fixed.float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_guidance_asks_the_background_and_not_matter_for_a_room():
    """The guide wants grey 0.7 everywhere; the learned background becomes it."""
    guide, sds = GaussianGuideConfig(mean=0.7, resolution=SIZE), SDSConfig(guidance_scale=1.0)
    model = build(background=LEARNED, guide=guide, sds=sds, losses=NO_LOSSES)
    optimizer = torch.optim.Adam(model.background.parameters(), lr=0.02)
    before = model.field.density(torch.zeros(1, 3))
    for step in range(60):
        optimizer.zero_grad()
        sum(losses_of(model, seed=step).values()).backward()
        optimizer.step()
    rays, _ = guided_batch()
    assert (model.background.learned(rays.directions, model.field.colors) - 0.7).abs().mean() < 0.05
    assert torch.equal(model.field.density(torch.zeros(1, 3)), before)


def test_it_is_no_matter():
    """Renderings, alpha and field are the same whatever the network shows."""
    model = solid(build(background=LEARNED)).eval()
    rays, _ = guided_batch()
    before = model(rays)
    for parameter in model.background.parameters():
        parameter.data.fill_(3.0)
    after = model(rays)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(model.get_rgba_image(before), model.get_rgba_image(after))


def test_a_second_nerf_has_a_background_of_its_own():
    model = build(background=LEARNED)
    for parameter in model.background.parameters():
        parameter.data.fill_(3.0)
    model.reset_field()
    assert not any((parameter == 3).all() for parameter in model.background.parameters() if parameter.ndim == 2)


def test_it_has_the_channels_of_the_field():
    model = build(background=LEARNED, field=dataclasses.replace(FIELD, latent_channels=4))
    assert model.background.learned(directions(), model.field.colors).shape == (1, 400, 4)


def test_config_shapes_the_network():
    assert background(hidden_width=7).network.layers[0].out_features == 7
