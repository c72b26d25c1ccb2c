"""Regularisers against hand numbers and nerfstudio's dense versions, and that each counts as much as its weight."""

import dataclasses

import pytest
import torch
from nerfstudio.model_components.losses import lossfun_distortion
from nerfstudio.model_components.losses import orientation_loss as nerfstudio_orientation_loss
from tiny_model import LIT, build, guided_batch, losses_of

from db3d_nerfstudio.nerf import losses
from db3d_nerfstudio.nerf.losses import LossWeights, Weight
from db3d_nerfstudio.nerf.occupancy import Samples

FIELDS = {field.name: field for field in dataclasses.fields(LossWeights)}


@pytest.fixture
def render():
    """What a lit view shows."""
    model, (rays, _) = build(), guided_batch(1)
    return dataclasses.replace(model(rays)["render"], lit=True)


def packed(starts, ends):
    which = torch.arange(len(starts))[:, None].expand_as(starts)
    return Samples(which.reshape(-1), starts.reshape(-1), ends.reshape(-1), len(starts))


def opaque(render, *values):
    """The rendering with these opacities, in turn."""
    accumulation = torch.tensor(values).repeat(len(render.accumulation) // len(values))[:, None].requires_grad_()
    return dataclasses.replace(render, accumulation=accumulation)


def test_distortion_agrees_with_the_pairwise_sum(render):
    edges = torch.sort(torch.rand(7, 12), -1).values
    weights = torch.rand(7, 11, requires_grad=True)
    samples = packed(edges[:, :-1], edges[:, 1:])
    ours = losses.distortion_loss(dataclasses.replace(render, samples=samples, weights=weights.view(-1)))
    theirs = lossfun_distortion(edges, weights).mean()
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, weights)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_orientation_agrees_with_nerfstudio_and_spares_the_weights(render):
    weights = torch.rand(256, 5, requires_grad=True)
    normals = torch.nn.functional.normalize(torch.randn(256, 5, 3), dim=-1).requires_grad_()
    turned = dataclasses.replace(render, samples=packed(torch.rand(256, 5), torch.rand(256, 5)))
    rays = turned.samples.rays
    turned.__dict__["visible_normals"] = (normals.view(-1, 3), weights.view(-1), rays)
    loss = losses.orientation_loss(turned)
    torch.testing.assert_close(
        loss, nerfstudio_orientation_loss(weights[..., None], normals, render.rays.directions).mean()
    )
    assert torch.autograd.grad(loss, normals, retain_graph=True)[0].abs().sum() > 0
    assert torch.autograd.grad(loss, weights, allow_unused=True)[0] is None


def test_opacity_by_hand(render):
    assert losses.opacity_loss(opaque(render, 0.0, 1.0)).item() == pytest.approx((0.1 + 1.01**0.5) / 2)


def test_entropy_is_one_bit_at_half_and_none_at_the_ends(render):
    assert losses.entropy_loss(opaque(render, 0.5)).item() == pytest.approx(1.0)
    assert losses.entropy_loss(opaque(render, 0.0, 1.0)).item() == pytest.approx(0.0, abs=2e-3)
    grey = opaque(render, 0.7)
    losses.entropy_loss(grey).backward()
    assert (grey.accumulation.grad < 0).all()


def test_every_function_of_the_file_has_a_weight():
    functions = {name for name in losses.__all__ if name.endswith("_loss")}
    assert {f"{name}_loss" for name in FIELDS} == functions
    assert all(field.metadata["loss"] is getattr(losses, f"{name}_loss") for name, field in FIELDS.items())


@pytest.mark.parametrize("name", FIELDS)
def test_a_loss_counts_as_much_as_its_weight(render, name):
    value = FIELDS[name].metadata["loss"](render)
    assert value != 0
    nothing = LossWeights(**dict.fromkeys(FIELDS, 0.0))
    assert nothing.weighted(render, 0.5) == {}
    for weight, expected in ((2.0, 2.0), ((1.0, 5.0), 2.0), ((0.0, 8.0), 2.0)):
        ((key, weighted),) = dataclasses.replace(nothing, **{name: weight}).weighted(render, 0.25).items()
        assert key == f"{name}_loss" and weighted.item() == pytest.approx(expected * value.item())


@pytest.mark.parametrize("name", FIELDS)
def test_only_its_own_weight_changes_a_loss(name):
    common = {"shading": LIT, "losses": LossWeights(**dict.fromkeys(FIELDS, 1.0))}
    changed = common | {"losses": dataclasses.replace(common["losses"], **{name: 0.0})}
    before, after = (losses_of(build(**config)) for config in (common, changed))
    assert before.keys() - after.keys() == {f"{name}_loss"}
    assert all(torch.equal(before[key], after[key]) for key in after)


def test_a_stranger_adds_a_loss_on_normals():
    """One function and one line; nothing else of the package changes."""

    def upright_loss(render):
        normals, weights, _ = render.visible_normals
        return (weights * normals[:, 2].square()).sum()

    @dataclasses.dataclass
    class Mine(LossWeights):
        upright: Weight = dataclasses.field(default=0.5, metadata={"loss": upright_loss})

    model = build(losses=Mine())
    upright = losses_of(model)["upright_loss"]
    gradients = torch.autograd.grad(upright, model.get_param_groups()["encodings"])
    assert upright > 0 and sum(gradient.abs().sum() for gradient in gradients) > 0
