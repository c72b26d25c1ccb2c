"""The model: what it renders, which loss each batch gets, and that every knob turns something."""

import dataclasses

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.engine.callbacks import TrainingCallbackAttributes
from tiny import GaussianGuideConfig
from tiny_model import FIELD, LIT, NO_LOSSES, SIZE, UNLIT, build, guided_batch, losses_of, pixels, solid

from db3d_nerfstudio.cameras import image_rays, orbit_cameras
from db3d_nerfstudio.diffusion.sds import SDSConfig
from db3d_nerfstudio.nerf.background import BackgroundConfig
from db3d_nerfstudio.nerf.model import MAX_EMPTY_RENDERS
from db3d_nerfstudio.nerf.occupancy import Samples

# Rendering.


def test_a_ball_looks_like_a_ball():
    model = solid(build()).eval()
    outputs = model.get_outputs_for_camera(orbit_cameras(1, 0.0, 3.0, 40.0, 65)[0])
    assert list(outputs) == ["rgb", "accumulation", "depth", "albedo", "shaded", "normals", "unit_normals"], (
        "the first is shown"
    )
    centre = {name: value[32, 32] for name, value in outputs.items()}
    torch.testing.assert_close(centre["rgb"], torch.tensor([1.0, 0, 0]), atol=1e-2, rtol=0)
    torch.testing.assert_close(centre["normals"], torch.tensor([1.0, 0.5, 0.5]), atol=2e-2, rtol=0)
    torch.testing.assert_close(centre["unit_normals"], torch.tensor([1.0, 0, 0]), atol=4e-2, rtol=0)
    assert centre["depth"].item() == pytest.approx(2.5, abs=0.06)
    # The silhouette: a disc of radius 0.5 at distance 3 spans asin(0.5 / 3), of which 20 degrees are 32.5 pixels.
    radius = 32.5 * torch.tan(torch.asin(torch.tensor(0.5 / 3))) / torch.tan(torch.deg2rad(torch.tensor(20.0)))
    assert outputs["accumulation"].sum().item() == pytest.approx(torch.pi * radius.item() ** 2, rel=0.06)
    assert outputs["accumulation"][0, 0] == 0
    torch.testing.assert_close(outputs["rgb"][0, 0], torch.ones(3))
    torch.testing.assert_close(outputs["albedo"][0, 0], torch.zeros(3))


def test_shaded_is_lit_from_the_camera():
    model = solid(build()).eval()
    outputs = model.get_outputs_for_camera(orbit_cameras(1, 0.0, 3.0, 40.0, 65)[0])
    shaded, rgb = outputs["shaded"], outputs["rgb"]
    torch.testing.assert_close(shaded[32, 32], rgb[32, 32], atol=1e-2, rtol=0)
    # 10 of the disc's 15 pixels from its centre the normal is asin(10 / 15) = 42 degrees off: 0.1 + 0.9 cos 42 = 0.77.
    assert (shaded[32, 42, 0] / rgb[32, 42, 0]).item() == pytest.approx(0.77, abs=0.06)
    torch.testing.assert_close(shaded[0, 0], torch.ones(3))


def test_empty_rays_end_behind_the_scene():
    """Else TSDF fusion builds a second shell on the far side."""
    model = solid(build()).eval()
    outputs = model.get_outputs_for_camera(orbit_cameras(1, 0.0, 3.0, 40.0, SIZE)[0])
    assert (outputs["depth"][outputs["accumulation"] < 0.5] > 4.0).all()


def test_evaluation_is_deterministic_and_training_is_not():
    model, (rays, _) = build(), guided_batch()
    assert not torch.equal(model(rays)["rgb"], model(rays)["rgb"])
    model.eval()
    assert torch.equal(model(rays)["rgb"], model(rays)["rgb"])


def test_outputs_of_training_and_evaluation_are_per_ray():
    model, (rays, _) = build(), guided_batch()
    for outputs in (model(rays), model.eval()(rays)):
        assert all(len(value) == len(rays) for value in outputs.values() if isinstance(value, torch.Tensor))


def test_odd_rays_survive():
    """One ray, not normalised, without limits (as the exporters' check sends), and one that misses everything."""
    for origin, direction in ((torch.ones(1, 3), torch.ones(1, 3)), (torch.full((1, 3), 5.0), torch.zeros(1, 3))):
        outputs = build().eval()(RayBundle(origins=origin, directions=direction, pixel_area=torch.ones(1, 1)))
        assert all(value.isfinite().all() for value in outputs.values())
        assert outputs["accumulation"].item() == 0


def test_rgba_is_the_colour_of_the_object_alone():
    model = solid(build(background=BackgroundConfig(color=(0.0, 1.0, 0.0)))).eval()
    outputs = model.get_outputs_for_camera(orbit_cameras(1, 0.0, 3.0, 40.0, SIZE)[0])
    rgba = model.get_rgba_image(outputs)
    torch.testing.assert_close(rgba[..., 3:], outputs["accumulation"])
    seen = rgba[..., 3] > 0.1
    torch.testing.assert_close(
        rgba[seen][:, :3], torch.tensor([1.0, 0, 0]).expand(int(seen.sum()), 3), atol=1e-2, rtol=0
    )


def test_exports_of_an_empty_scene_end_with_advice():
    empty = {"rgb": torch.ones(4, 3), "accumulation": torch.zeros(4, 1)}
    model = build()
    for _ in range(MAX_EMPTY_RENDERS):
        model.get_rgba_image(empty)
    with pytest.raises(RuntimeError, match="empty.*--pipeline.model.losses.opacity"):
        model.get_rgba_image(empty)


def test_image_metrics_are_floats_and_images_drawable():
    model = solid(build()).eval()
    outputs = model.get_outputs_for_camera(orbit_cameras(1, 0.0, 3.0, 40.0, SIZE)[0])
    metrics, images = model.get_image_metrics_and_images(outputs, {"image": outputs["rgb"] + 0.1})
    assert metrics == {"psnr": pytest.approx(20.0, abs=1e-3)}
    assert all(image.shape[2] == 3 for image in images.values())


# Losses.


def test_the_batch_decides_the_loss():
    model = build()
    regularisers = {"opacity_loss", "entropy_loss", "distortion_loss"}
    assert set(losses_of(model, pixels)) == regularisers | {"recon_loss"}
    assert "guide" not in vars(model.distillation)
    assert set(losses_of(model)) == regularisers | {"sds_loss"}
    assert set(losses_of(build(shading=LIT))) == regularisers | {"sds_loss", "orientation_loss"}


def test_every_loss_reaches_the_field():
    model = build(shading=LIT)
    model.set_progress(0.5)
    for name, loss in {**losses_of(model), **losses_of(model, pixels)}.items():
        gradients = torch.autograd.grad(loss, list(model.field.parameters()), retain_graph=True, allow_unused=True)
        assert sum(g.abs().sum() for g in gradients if g is not None) > 0, name


def test_guidance_moves_colours_to_the_guides_mean():
    """A Gaussian guide whose every picture is grey 0.7 turns a ball, seen in front of random colours, grey."""
    model = build(sds=SDSConfig(guidance_scale=1.0), losses=NO_LOSSES)
    optimizer = torch.optim.Adam(model.field.parameters(), lr=0.02)
    for step in range(60):
        optimizer.zero_grad()
        sum(losses_of(model, seed=step).values()).backward()
        optimizer.step()
    outputs = model(guided_batch()[0])
    inside = outputs["accumulation"][:, 0] > 0.9
    colour = outputs["albedo"][inside] / outputs["accumulation"][inside]
    assert inside.sum() > 20 and (colour - 0.7).abs().mean() < 0.05


def test_each_view_is_graded_with_its_own_prompt_and_image():
    """Image-major rays: only the back's picture, whose prompt asks for white instead of grey, brightens."""
    means = {"a photo of a sks robot, back view": 1.0, "a photo of a sks robot, front view": 0.0}
    guide = GaussianGuideConfig(resolution=SIZE, means=means)
    model = solid(build(guide=guide, sds=SDSConfig(guidance_scale=1.0), sds_loss_mult=1.0))
    rays, batch = guided_batch(2)
    outputs = model(rays)
    outputs["albedo"].retain_grad()
    model.get_loss_dict(outputs, batch)["sds_loss"].backward()
    front, back = outputs["albedo"].grad.view(2, -1).mean(-1)
    assert front > 0 > back


@pytest.mark.parametrize(
    "changes, losses",
    [
        ({"sds_loss_mult": 0.0}, {"sds_loss"}),
        ({"sds": SDSConfig(guidance_scale=50.0)}, {"sds_loss"}),
        ({"prompt": "a photo of a dog"}, {"sds_loss"}),
        ({"background": BackgroundConfig(random_prob=0.0)}, {"sds_loss"}),
        ({"normal_weight_threshold": 0.5}, {"orientation_loss", "sds_loss"}),
        ({"shading": UNLIT}, {"orientation_loss", "sds_loss"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_config_changes_exactly_these_losses(changes, losses):
    means = {f"a photo of a dog, {view} view": 0.2 for view in ("front", "back")}
    common = {"shading": LIT, "guide": GaussianGuideConfig(resolution=SIZE, means=means)}
    results = []
    for config in (common, common | changes):
        model = build(**config)
        model.set_progress(0.5)
        results.append(losses_of(model))
    before, after = results
    names = before.keys() | after.keys()
    changed = {name for name in names if name not in after or not torch.equal(before[name], after[name])}
    assert changed == losses


def test_background_colour_changes_the_picture_and_the_reconstruction():
    black = build(background=BackgroundConfig(color=(0.0, 0.0, 0.0)))
    assert not torch.equal(losses_of(build(), pixels)["recon_loss"], losses_of(black, pixels)["recon_loss"])


def test_interpolated_prompts_differ_between_named_views():
    means = {"a photo of a sks robot, front view": 0.0}
    guide = GaussianGuideConfig(resolution=SIZE, means=means)
    cameras, views = orbit_cameras(1, 10.0, 3.0, 40.0, SIZE, first_azimuth=30.0)
    batch, rays = {"views": views, "image_shape": (1, SIZE, SIZE)}, image_rays(cameras)
    values = []
    for interpolate in (False, True):
        model = build(guide=guide, sds=SDSConfig(interpolate_prompts=interpolate))
        torch.manual_seed(0)
        values.append(model.get_loss_dict(model(rays), batch)["sds_loss"])
    assert not torch.equal(*values)


def test_schedules_are_functions_of_progress_alone():
    model = build()
    model.set_progress(0.9)
    late = losses_of(model)
    model.set_progress(0.1)
    early = losses_of(model)
    assert early["entropy_loss"].item() == pytest.approx(late["entropy_loss"].item() / 9)
    model.set_progress(0.9)
    torch.testing.assert_close(losses_of(model), late)


# The guide, the checkpoint, the second NeRF.


def test_the_guide_is_no_part_of_the_model():
    model = build()
    losses_of(model)
    assert "guide" in vars(model.distillation)
    assert not any("guide" in name or "distillation" in name for name in model.state_dict())
    assert not any("distillation" in name for name, _ in model.named_modules())


def test_a_second_nerf_starts_in_the_same_parameters():
    model = build()
    parameters = list(model.field.parameters())
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    losses_of(model)["sds_loss"].backward()
    optimizer.step()
    model.sampler.update(0, lambda positions: torch.zeros(len(positions)))
    trained = [parameter.clone() for parameter in parameters]
    torch.manual_seed(0)
    model.reset_field()
    assert all(a is b for a, b in zip(parameters, model.field.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(parameters, trained, strict=True))
    torch.manual_seed(0)
    fresh = FIELD.setup()
    torch.testing.assert_close([*model.field.parameters()], [*fresh.parameters()])
    assert model.sampler.grid.binaries.all() and int(model.sampler.updates) == 0


def test_param_groups_cover_what_is_trained():
    model = build()
    groups = model.get_param_groups()
    assert set(groups) == {"encodings", "networks"}
    assert sum(map(len, groups.values())) == len(list(model.field.parameters()))


def test_the_occupancy_callback_is_a_function_of_the_step():
    model = build()
    (callback,) = model.get_training_callbacks(TrainingCallbackAttributes(None, None, None, None))
    for step in range(33):
        callback.run_callback(step)
    assert int(model.sampler.updates) == 3


def test_metrics_by_hand():
    """A grey picture beside one that is brighter by a tenth: -10 log10(0.1^2) = 20 dB; three samples on two rays."""
    model, (rays, _) = build(), guided_batch()
    samples = Samples(torch.tensor([0, 0, 1]), torch.zeros(3), torch.ones(3), 2)
    render = dataclasses.replace(model(rays)["render"], samples=samples)
    outputs = {"rgb": torch.full((2, 3), 0.5), "accumulation": torch.tensor([[1.0], [0.5]]), "render": render}
    metrics = model.get_metrics_dict(outputs, {"image": torch.full((2, 3), 0.6)})
    assert {name: round(value.item(), 3) for name, value in metrics.items()} == {
        "accumulation": 0.75,
        "samples_per_ray": 1.5,
        "psnr": 20.0,
    }
