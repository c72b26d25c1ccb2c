"""Samples lie where they should, and composite like nerfacc's reference."""

import dataclasses

import nerfacc
import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from torch.nn import functional as F

from db3d_nerfstudio.nerf.occupancy import OccupancySamplerConfig, Samples, intersect_sphere


def bundle(origins, directions, **fields) -> RayBundle:
    origins, directions = torch.tensor(origins), torch.tensor(directions)
    return RayBundle(origins=origins, directions=directions, pixel_area=torch.ones(len(origins), 1), **fields)


def random_bundle(num=50, seed=0) -> RayBundle:
    generator = torch.Generator().manual_seed(seed)
    origins = F.normalize(torch.randn(num, 3, generator=generator), dim=-1) * 3
    directions = F.normalize(torch.randn(num, 3, generator=generator) * 0.5 - origins, dim=-1)
    return RayBundle(origins=origins, directions=directions, pixel_area=torch.ones(num, 1))


def sampler(**changes):
    return dataclasses.replace(OccupancySamplerConfig(num_samples=32, resolution=16), **changes).setup()


def test_rays_are_clipped_to_the_unit_sphere():
    """Through the centre, off the centre, from inside, twice as long a direction, away from it, and a miss."""
    rays = bundle(
        [[3.0, 0, 0], [3.0, 0.6, 0], [0.0, 0, 0], [3.0, 0, 0], [3.0, 0, 0], [3.0, 1.5, 0]],
        [[-1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0], [-2.0, 0, 0], [1.0, 0, 0], [-1.0, 0, 0]],
    )
    near, far = intersect_sphere(rays)
    torch.testing.assert_close(near[:4], torch.tensor([2.0, 2.2, 0.0, 1.0]))
    torch.testing.assert_close(far[:4], torch.tensor([4.0, 3.8, 1.0, 2.0]))
    assert (near[4:] >= far[4:]).all()


def test_limits_that_rays_bring_along_are_kept():
    """`ns-export`'s textures and the viewer's crop box set them."""
    rays = bundle(
        [[3.0, 0, 0]] * 2, [[-1.0, 0, 0]] * 2, nears=torch.tensor([[2.5], [0.0]]), fars=torch.full((2, 1), 3.0)
    )
    near, far = intersect_sphere(rays)
    assert near.tolist() == [2.5, 2.0] and far.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("training", [True, False])
def test_intervals_tile_the_sphere(training):
    rays, (near, far) = random_bundle(), intersect_sphere(random_bundle())
    samples = sampler().train(training).sample(rays)
    lengths = torch.zeros(50).index_add(0, samples.rays, samples.ends - samples.starts)
    torch.testing.assert_close(lengths, (far - near).clamp_min(0))
    same = samples.rays[1:] == samples.rays[:-1]
    torch.testing.assert_close(samples.starts[1:][same], samples.ends[:-1][same])
    assert (samples.ends - samples.starts).max() <= 2 / 32 + 1e-5
    assert samples.positions(rays).norm(dim=-1).max() <= 1


def test_sampling_needs_no_compiled_kernel(monkeypatch):
    """nerfacc's CUDA kernels cannot be built for current releases of torch: no device may depend on them."""
    moving = sampler()
    monkeypatch.setattr(type(moving.grid), "sampling", lambda *_, **__: pytest.fail("nerfacc's traversal was called"))
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    assert len(moving.sample(random_bundle()).rays) > 0


def test_training_shifts_samples_and_evaluation_does_not():
    rays, moving = random_bundle(), sampler()
    assert not torch.equal(moving.sample(rays).mids[:9], moving.sample(rays).mids[:9])
    still = sampler().eval()
    assert torch.equal(still.sample(rays).mids, still.sample(rays).mids)


def test_number_of_samples_sets_the_step():
    rays = bundle([[3.0, 0, 0]], [[-1.0, 0, 0]])
    assert len(sampler(num_samples=10).eval().sample(rays).rays) == 10
    assert sampler(num_samples=10).step_size == pytest.approx(0.2)


def test_only_occupied_cells_are_sampled():
    """A half space: what is kept are exactly the samples of the full set that lie in it."""
    half = sampler().eval()
    half.grid.binaries.zero_()
    half.grid.binaries[0, :, 8:] = True  # y > 0
    rays = random_bundle()
    every = sampler().eval().sample(rays)
    expected = every.positions(rays)[:, 1] > 0
    kept = half.sample(rays)
    torch.testing.assert_close(kept.mids, every.mids[expected])
    assert torch.equal(kept.rays, every.rays[expected])


def test_updates_find_a_ball_and_its_surroundings():
    sampling = sampler(resolution=20, threshold=0.01)

    def ball(positions):
        return 100.0 * (positions.norm(dim=-1) < 0.5)

    for step in range(48):
        sampling.update(step, ball)
    assert int(sampling.updates) == 3
    centres = (sampling.grid.grid_coords + 0.5) / 10 - 1
    distance, occupied = centres.norm(dim=-1), sampling.grid.binaries.view(-1)
    assert occupied[distance < 0.5].all() and not occupied[distance > 0.5 + 3 * 0.1 * 3**0.5].any()


def test_config_sets_when_and_what_updates_remember():
    def matter(positions):
        return torch.full_like(positions[:, 0], 8.0)

    def nothing(positions):
        return torch.zeros_like(positions[:, 0])

    often = sampler(update_every=2)
    for step in range(4):
        often.update(step, matter)
    assert int(often.updates) == 2
    fading = sampler(decay=0.5, threshold=0.1)
    for step, density in zip((0, 16, 32), (matter, nothing, nothing), strict=True):
        fading.update(step, density)
    # One step through density 8 has optical depth 8 * 2 / 32 = 0.5, halved twice since.
    torch.testing.assert_close(fading.grid.occs, torch.full_like(fading.grid.occs, 0.125))
    assert fading.grid.binaries.all()
    deaf = sampler(decay=0.5, threshold=0.2)
    deaf.load_state_dict(fading.state_dict())
    deaf.update(48, nothing)
    assert not (deaf.grid.occs > 0.2).any()


def test_the_grid_is_in_the_checkpoint_and_reset_forgets_it():
    first, second = sampler(), sampler()
    first.update(0, lambda positions: positions[:, 0].clamp_min(0) * 100)
    assert not first.grid.binaries.all()
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.grid.binaries, first.grid.binaries) and int(second.updates) == 1
    second.reset()
    assert second.grid.binaries.all() and int(second.updates) == 0


def dense_samples(num_rays=6, per_ray=9):
    edges = torch.sort(torch.rand(num_rays, per_ray + 1), -1).values
    starts, ends, density = edges[:, :-1], edges[:, 1:], torch.rand(num_rays, per_ray) * 30
    which = torch.arange(num_rays)[:, None].expand(-1, per_ray)
    return Samples(which.reshape(-1), starts.reshape(-1), ends.reshape(-1), num_rays), starts, ends, density


def test_weights_agree_with_nerfacc_forward_and_backward():
    samples, starts, ends, density = dense_samples()
    ours, theirs = density.clone().requires_grad_(), density.clone().requires_grad_()
    weights = samples.render_weights(ours.view(-1)).view(6, 9)
    expected = nerfacc.render_weight_from_density(starts, ends, theirs)[0]
    torch.testing.assert_close(weights, expected)
    cotangent = torch.randn(6, 9)
    torch.testing.assert_close(
        torch.autograd.grad(weights, ours, cotangent)[0], torch.autograd.grad(expected, theirs, cotangent)[0]
    )


def test_rays_without_samples_composite_to_nothing():
    samples = Samples(torch.tensor([1, 1, 3]), torch.zeros(3), torch.ones(3), 5)
    weights = samples.render_weights(torch.tensor([2.0, 3.0, 1.0]))
    assert samples.exclusive_sum(torch.tensor([2.0, 3.0, 1.0])).tolist() == [0.0, 2.0, 0.0]
    total = samples.composite(weights, torch.ones(3, 1))[:, 0]
    torch.testing.assert_close(total, 1 - torch.exp(-torch.tensor([0.0, 5.0, 0.0, 1.0, 0.0])))


def test_opaque_rays_do_not_spoil_the_ones_after_them():
    """Optical depths of a million in front, in the same running sum, leave thin matter exact."""
    which = torch.arange(1000).repeat_interleave(2)
    density = torch.full((2000,), 1e6)
    density[-2:] = torch.tensor([1e-3, 2e-3])
    weights = Samples(which, torch.zeros(2000), torch.ones(2000), 1000).render_weights(density)
    torch.testing.assert_close(weights[-2:], torch.tensor([9.995e-4, 1.9960e-3]), rtol=1e-4, atol=0)
