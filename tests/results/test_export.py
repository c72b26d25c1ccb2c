"""`db3d export`: a run folder in, files that other programs open out, or one clear line."""

import base64
import os
import shutil

import pytest
import torch
import trimesh
from trimesh.visual import ColorVisuals

from db3d_nerfstudio import cli
from db3d_nerfstudio.results import export

SMALL = ["--resolution", "24", "--max-faces", "300", "--texture-size", "32"]


@pytest.fixture(scope="module")
def meshes(untrained_run, tmp_path_factory):
    """The files of each format, of a run that is not where it was trained."""
    moved = tmp_path_factory.mktemp("elsewhere") / "renamed"
    shutil.copytree(untrained_run, moved)
    for kind in ("glb", "obj", "ply"):
        cli.main(["export", str(moved), "--format", kind, *SMALL])
    return moved / "exports"


def test_formats_hold_the_same_mesh(meshes):
    assert {path.name for path in meshes.iterdir()} == {
        *("mesh.glb", "mesh.obj", "mesh.mtl", "albedo.png", "mesh.ply", "preview.html")
    }
    glb, obj, ply = (trimesh.load_scene(meshes / f"mesh.{kind}").to_mesh() for kind in ("glb", "obj", "ply"))
    for mesh in (glb, obj, ply):
        assert 100 < len(mesh.faces) == len(glb.faces) <= 300
        assert mesh.bounds == pytest.approx(glb.bounds, abs=1e-4) and mesh.extents.max() == pytest.approx(1, abs=1e-4)
    normals = {"glb": b'"NORMAL"', "obj": b"\nvn ", "ply": b"property float nx"}
    assert all(word in (meshes / f"mesh.{kind}").read_bytes() for kind, word in normals.items())
    assert glb.visual.material.baseColorTexture.size == obj.visual.material.image.size == (32, 32)
    assert glb.visual.material.metallicFactor == 0 and glb.visual.material.roughnessFactor == 1
    assert isinstance(ply.visual, ColorVisuals) and ply.visual.kind == "vertex" and ply.is_watertight


def test_report_tells_size_and_holes(meshes, tmp_path):
    line = export.check(meshes / "mesh.glb")
    assert "watertight, texture 32 x 32" in line and " faces, " in line and line.endswith(" MB")
    mesh = trimesh.load_scene(meshes / "mesh.ply").to_mesh()
    mesh.update_faces([False] + [True] * (len(mesh.faces) - 1))
    mesh.export(tmp_path / "torn.ply")
    assert "not watertight: 3 edges without two faces, colours at the vertices" in export.check(tmp_path / "torn.ply")
    trimesh.creation.box().export(tmp_path / "plain.stl")
    with pytest.raises(ValueError, match="without colours"):
        export.check(tmp_path / "plain.stl")


def test_page_holds_the_mesh_and_its_viewer(meshes):
    page = (meshes / "preview.html").read_text("utf8")
    mesh = page.split("data:model/gltf-binary;base64,")[1].split('"')[0]
    assert base64.b64decode(mesh) == (meshes / "mesh.glb").read_bytes()
    assert 'customElements.define("model-viewer"' in page and "<title>renamed</title>" in page
    own = page.split("<script>")[0] + page.split("</script>")[-1]
    assert page.count("<script") == page.count("</script>") == 1 and "http" not in own.replace(mesh, "")


def test_title_of_the_page_is_text():
    assert "<b>" not in export.preview_page(b"", "<b>").split("<script>")[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "config.yml").unlink(), "is not a run: give the folder that holds config.yml"),
        (lambda run: shutil.rmtree(run / "nerfstudio_models"), "has no checkpoint yet"),
        (lambda run: os.truncate(run / "nerfstudio_models" / "step-000000007.ckpt", 2000), "cannot be loaded"),
    ],
)
def test_bad_run_is_one_line(untrained_run, tmp_path, damage, message):
    run = tmp_path / "run"
    shutil.copytree(untrained_run, run)
    damage(run)
    with pytest.raises(SystemExit, match=message) as caught:
        cli.main(["export", str(run), *SMALL])
    assert "\n" not in str(caught.value.code) and not (run / "exports").exists()


def test_empty_scene_and_useless_settings_are_one_line(untrained_run, tmp_path):
    with pytest.raises(SystemExit, match="--max-faces 3 is too small"):
        cli.main(["export", str(untrained_run), "--max-faces", "3"])
    run = tmp_path / "run"
    shutil.copytree(untrained_run, run)
    path = run / "nerfstudio_models" / "step-000000007.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    bias = max(name for name in checkpoint["pipeline"] if name.endswith(".bias"))
    checkpoint["pipeline"][bias][0] = -100.0  # Of the network's last layer: no density anywhere.
    torch.save(checkpoint, path)
    with pytest.raises(SystemExit, match="the scene is empty"):
        cli.main(["export", str(run), *SMALL])
