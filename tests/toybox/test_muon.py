"""Muon: steps of one length in directions that gradients have."""

import pytest
import torch

from db3d_nerfstudio.toybox.muon import Muon, orthogonalise


def test_orthogonalise_flattens_the_spectrum_and_keeps_the_directions():
    torch.manual_seed(0)
    matrix = torch.randn(24, 10) * torch.logspace(0, -1, 10)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    result = left.T @ orthogonalise(matrix) @ right.T  # Diagonal in the bases of the matrix itself.
    assert (result - torch.diag(result.diagonal())).abs().max() < 1e-4
    assert 0.6 < result.diagonal().min() and result.diagonal().max() < 1.3


def test_a_step_of_muon_has_the_same_length_whatever_the_gradients_scale():
    moved = []
    for scale in (1.0, 1000.0):
        weight = torch.nn.Parameter(torch.zeros(8, 4, 3, 3))
        weight.grad = scale * torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
        Muon([weight], lr=0.1).step()
        moved.append(weight.detach())
    torch.testing.assert_close(*moved, atol=1e-5, rtol=1e-3)
    assert moved[0].norm() == pytest.approx(0.1 * 8**0.5, rel=0.2)  # Eight singular values of about 0.1.
