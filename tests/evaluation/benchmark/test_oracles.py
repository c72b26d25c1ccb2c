"""Oracles: the truth in the files and options that a run reads."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import open3d as o3d
import pytest
from PIL import Image

from db3d_nerfstudio.cameras import image_rays
from db3d_nerfstudio.diffusion.captions import named_view
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.evaluation.benchmark.benchmark import BenchmarkConfig, choose_subjects, make_jobs
from db3d_nerfstudio.evaluation.benchmark.oracles import ORACLES, oracles_of, truth_of
from db3d_nerfstudio.evaluation.benchmark.subjects import BenchmarkSubject
from db3d_nerfstudio.results.asset import picture_asset, read_asset
from db3d_nerfstudio.toybox.subjects import make_subject
from db3d_nerfstudio.training.dataparser import DreamBooth3DDataParserConfig
from db3d_nerfstudio.training.pseudo_views import given_views
from db3d_nerfstudio.words import DIRECTIONS

OURS = "dreambooth3d-toybox"
CONFIG = BenchmarkConfig(methods=(OURS, *oracles_of(OURS)), classes=("duck",), first_toy=5, oracles=True)


@pytest.fixture(scope="module")
def duck(tmp_path_factory: pytest.TempPathFactory) -> BenchmarkSubject:
    (subject,) = choose_subjects(CONFIG, tmp_path_factory.mktemp("benchmark"))
    return subject


def test_true_pseudo_views_are_seen_by_the_cameras_of_the_orbit(duck: BenchmarkSubject) -> None:
    cameras, _ = DreamBooth3DDataParserConfig().orbit()
    views = given_views(duck.truth / "orbit", len(cameras), background=(0.5, 0.5, 0.5))
    assert views.shape == (20, 3, 64, 64) and views[:, :, 0, 0].unique().tolist() == pytest.approx([128 / 255])
    mesh = make_subject(5, "duck").mesh()
    caster = o3d.t.geometry.RaycastingScene()
    caster.add_triangles(
        o3d.core.Tensor(np.asarray(mesh.vertices, np.float32)), o3d.core.Tensor(np.asarray(mesh.faces, np.uint32))
    )
    rays = image_rays(cameras)
    hits = caster.cast_rays(o3d.core.Tensor(np.concatenate([rays.origins, rays.directions], -1)))["t_hit"].numpy()
    seen = np.isfinite(hits).reshape(20, 64, 64)
    for index in range(20):
        alpha = np.asarray(Image.open(duck.truth / "orbit" / f"{index:03d}.png"))[..., 3] > 127
        assert (alpha & seen[index]).sum() / (alpha | seen[index]).sum() > 0.97


def test_the_true_mesh_stands_where_the_pseudo_views_show_it(duck: BenchmarkSubject) -> None:
    cameras, _ = DreamBooth3DDataParserConfig().orbit()
    alphas = [rgba[3] > 0.5 for rgba in picture_asset(read_asset(duck.truth / "mesh.glb"), cameras[:5])]
    for index, alpha in enumerate(alphas):
        seen = np.asarray(Image.open(duck.truth / "orbit" / f"{index:03d}.png"))[..., 3] > 127
        assert (alpha.numpy() & seen).sum() / (alpha.numpy() | seen).sum() > 0.85, "but for its size"


def test_photos_from_all_round_are_named_after_their_sides(duck: BenchmarkSubject) -> None:
    names = [named_view(path, tells_sides=True) for path in sorted((duck.truth / "all_round").iterdir())]
    assert tuple(names) == DIRECTIONS


def test_oracles_are_methods_with_the_truth_in_their_options(duck: BenchmarkSubject, tmp_path: Path) -> None:
    jobs = make_jobs(CONFIG, tmp_path, [duck])
    assert [job.cell.method for job in jobs] == [OURS, *oracles_of(OURS)] and len(jobs) == 1 + len(ORACLES)
    mesh, views, photos = (job.train for job in jobs[1:])
    assert mesh[-4:-2] == ("--pipeline.phases.initial.mesh", str(duck.truth / "mesh.glb"))
    assert views[-2:] == ("--pipeline.phases.pseudo-views.images", str(duck.truth / "orbit"))
    assert photos[photos.index("--pipeline.phases.dreambooth.view-words") - 1] == str(duck.truth / "all_round")
    with pytest.raises(UserError, match="no known truth"):
        make_jobs(CONFIG, tmp_path, [replace(duck, truth=None)])


def test_the_truth_is_made_once(duck: BenchmarkSubject) -> None:
    before = {path: path.stat().st_mtime_ns for path in duck.truth.rglob("*.png")}
    assert truth_of(duck, duck.truth.parent) == duck.truth and len(before) == 28
    assert {path: path.stat().st_mtime_ns for path in duck.truth.rglob("*.png")} == before
