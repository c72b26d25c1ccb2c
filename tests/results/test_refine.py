"""The mesh stage: a texture that comes to look like pictures of the surface, through known places in it."""

import shutil

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from tiny import GaussianGuideConfig
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from db3d_nerfstudio import cli
from db3d_nerfstudio.cameras import orbit_cameras, spiral_cameras
from db3d_nerfstudio.diffusion.prompt_bank import PromptBank
from db3d_nerfstudio.diffusion.sds import SDSConfig, sds_loss
from db3d_nerfstudio.results.asset import Asset, Part, _textured, picture_asset
from db3d_nerfstudio.results.posed_images import PosedImages, save_posed
from db3d_nerfstudio.results.raycast import Raycaster
from db3d_nerfstudio.results.refine import TextureGuidance, footprint, refine_texture
from db3d_nerfstudio.results.texture import unwrap

SIDE = 48
GREY = torch.full((3,), 0.5)


def textured_box(image):
    box = trimesh.creation.box((1.0, 0.9, 0.8))
    atlas = unwrap(box, image.width)
    visual = TextureVisuals(uv=atlas.uv, material=PBRMaterial(baseColorTexture=image))
    return trimesh.Trimesh(box.vertices[atlas.vertices], atlas.faces, visual=visual, process=False)


@pytest.fixture
def grey_box():
    return textured_box(Image.new("RGB", (32, 32), (128, 128, 128)))


def photographed(mesh, num=6, size=SIDE, elevation=25.0):
    """Pictures of a textured mesh in front of a background that is not part of it."""
    cameras, _ = orbit_cameras(num, elevation, 3.05, 40.0, size)
    asset = Asset((Part(np.asarray(mesh.vertices), np.asarray(mesh.faces), _textured(mesh)),))
    rgba = torch.stack(list(picture_asset(asset, cameras))).permute(0, 2, 3, 1)
    flat = rgba[..., :3] * rgba[..., 3:] + (1 - rgba[..., 3:]) * torch.tensor([1.0, 0.0, 1.0])
    return PosedImages(cameras, (flat * 255).round().byte())


def smooth_image(side=32):
    """Colours that change slowly, whatever the seams do."""
    small = np.random.default_rng(0).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def error(mesh, views):
    """Mean difference of what shows the surface squarely."""
    caster = Raycaster([(np.asarray(mesh.vertices), np.asarray(mesh.faces))])
    image = np.asarray(mesh.visual.material.baseColorTexture, np.float32) / 255
    texture = torch.from_numpy(image).permute(2, 0, 1)[None]
    differences = []
    for i in range(len(views.cameras)):
        seen = footprint(caster, mesh, views.cameras[i : i + 1])
        target = views.images[i][seen.hit].float() / 255
        differences.append((seen.colors(texture) - target).abs().mean(-1)[seen.facing > 0.5])
    return float(torch.cat(differences).mean())


def test_a_footprint_shows_what_a_renderer_of_textures_shows():
    mesh = textured_box(smooth_image(256))  # So fine that half a texel, in which renderers differ, is nothing.
    assert error(mesh, photographed(mesh)) < 0.02


def test_a_texture_comes_to_look_like_pictures_from_other_sides_too(grey_box):
    truth = textured_box(smooth_image())
    refined = refine_texture(grey_box, photographed(truth), steps=60, size=SIDE)
    unseen = photographed(truth, num=3, elevation=10.0)
    assert error(refined, unseen) < 0.3 * error(grey_box, unseen)
    assert np.array_equal(refined.vertices, grey_box.vertices)
    untouched = np.asarray(grey_box.visual.material.baseColorTexture)
    assert (untouched == 128).all(), "the mesh that was given is left alone"
    colors = np.asarray(refined.visual.material.baseColorTexture).reshape(-1, 3)
    assert (colors == 128).all(1).any(), "and so is what no picture shows"


def test_views_outvote_one_that_contradicts_them(grey_box):
    truth = textured_box(Image.new("RGB", (32, 32), (40, 200, 40)))
    views = photographed(truth, num=5, elevation=60.0)  # All of them show the top.
    views.images[2] = 0
    refined = refine_texture(grey_box, views, steps=80, size=SIDE)
    top = photographed(truth, num=1, elevation=89.0)
    assert error(refined, top) < 0.06


def test_pictures_of_another_size_are_compared_at_the_given_one(grey_box):
    truth = textured_box(smooth_image())
    coarse = refine_texture(grey_box, photographed(truth, size=2 * SIDE), steps=30, size=SIDE)
    assert error(coarse, photographed(truth)) < 0.5 * error(grey_box, photographed(truth))


def test_the_guide_moves_texels_that_no_picture_shows(grey_box):
    """An analytic guide to which every view is as dark as .2, and pictures that say the same of the sides they show."""
    guide = GaussianGuideConfig(mean=0.2, resolution=8).setup()
    bank = PromptBank(guide, "a box")

    def loss(image, views):
        t = torch.tensor([300])
        return 0.05 * sds_loss(guide, image, bank(views), t, SDSConfig(guidance_scale=1.0))

    below = spiral_cameras(8, (-60.0, -50.0), 3.0, 40.0, 1)
    views = photographed(textured_box(Image.new("RGB", (32, 32), (51, 51, 51))), elevation=60.0)
    bottom = photographed(textured_box(Image.new("RGB", (32, 32), (51, 51, 51))), num=1, elevation=-89.0)
    without, guided = (
        refine_texture(grey_box, views, 40, SIDE, guidance) for guidance in (None, TextureGuidance(loss, *below, GREY))
    )
    assert error(guided, bottom) < 0.6 * error(without, bottom)


@pytest.fixture
def run(untrained_run, tmp_path):
    """A run with pseudo views that are all red."""
    run = tmp_path / "run"
    shutil.copytree(untrained_run, run)
    cameras, _ = orbit_cameras(3, 20.0, 3.05, 40.0, 16)
    (run / "pseudo_views").mkdir()
    save_posed(run / "pseudo_views", cameras, [torch.tensor([1.0, 0.0, 0.0, 1.0])[:, None, None].expand(4, 16, 16)] * 3)
    return run


def redness(run, *options):
    small = ["--resolution", "24", "--max-faces", "300", "--texture-size", "32", "--refine-size", "32"]
    cli.main(["export", str(run), *small, *options])
    mesh = trimesh.load_scene(run / "exports" / "mesh.glb").to_mesh()
    pixels = np.asarray(mesh.visual.material.baseColorTexture.convert("RGB"), float) / 255
    return float((pixels[..., 0] - pixels[..., 1]).mean())


def test_an_exported_texture_is_fitted_on_request(run):
    assert redness(run, "--refine-texture", "40") > redness(run) + 0.3


def test_a_run_without_pseudo_views_is_one_line(untrained_run):
    with pytest.raises(SystemExit, match="has no pseudo views to fit a texture to: leave --refine-texture out"):
        redness(untrained_run, "--refine-texture", "1")


def test_the_run_s_guide_is_asked_if_it_has_a_weight(run):
    with pytest.raises(SystemExit, match="nowhere"):  # The guide that this run was never trained with.
        redness(run, "--refine-texture", "1", "--refine-guidance", "1")
