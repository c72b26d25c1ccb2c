"""Regularisers against hand numbers and nerfstudio's dense versions."""

import pytest
import torch
from nerfstudio.model_components.losses import lossfun_distortion
from nerfstudio.model_components.losses import orientation_loss as nerfstudio_orientation_loss

from db3d_nerfstudio.nerf.losses import distortion_loss, entropy_loss, opacity_loss, orientation_loss
from db3d_nerfstudio.nerf.occupancy import Samples


def test_distortion_agrees_with_the_pairwise_sum():
    edges = torch.sort(torch.rand(7, 12), -1).values
    weights = torch.rand(7, 11, requires_grad=True)
    which = torch.arange(7)[:, None].expand(-1, 11).reshape(-1)
    samples = Samples(which, edges[:, :-1].reshape(-1), edges[:, 1:].reshape(-1), 7)
    ours, theirs = distortion_loss(weights.view(-1), samples), lossfun_distortion(edges, weights).mean()
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, weights)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_orientation_agrees_with_nerfstudio_and_spares_the_weights():
    weights = torch.rand(4, 5, requires_grad=True)
    normals = torch.nn.functional.normalize(torch.randn(4, 5, 3), dim=-1).requires_grad_()
    directions = torch.nn.functional.normalize(torch.randn(4, 3), dim=-1)
    flat = directions[:, None].expand(-1, 5, -1).reshape(-1, 3)
    loss = orientation_loss(weights.view(-1), normals.view(-1, 3), flat, 4)
    expected = nerfstudio_orientation_loss(weights[..., None], normals, directions).mean()
    torch.testing.assert_close(loss, expected)
    assert torch.autograd.grad(loss, normals, retain_graph=True)[0].abs().sum() > 0
    assert torch.autograd.grad(loss, weights, allow_unused=True)[0] is None


def test_opacity_by_hand():
    assert opacity_loss(torch.tensor([[0.0], [1.0]])).item() == pytest.approx((0.1 + 1.01**0.5) / 2)


def test_entropy_is_one_bit_at_half_and_none_at_the_ends():
    assert entropy_loss(torch.tensor([[0.5]])).item() == pytest.approx(1.0)
    assert entropy_loss(torch.tensor([[0.0], [1.0]])).item() == pytest.approx(0.0, abs=2e-3)
    grey = torch.tensor([[0.7]], requires_grad=True)
    entropy_loss(grey).backward()
    assert grey.grad < 0
