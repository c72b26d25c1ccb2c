"""Assets from elsewhere: colours of every kind, their place in the scene, and one line for what is not an asset."""

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from db3d_nerfstudio.cameras import orbit_cameras
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.results import asset as assets
from db3d_nerfstudio.results.asset import ASSET_RADIUS, picture_asset, read_asset
from db3d_nerfstudio.toybox.scene import Shot, Studio
from db3d_nerfstudio.toybox.subjects import make_subject

RED, GREEN = (255, 0, 0, 255), (0, 255, 0, 255)


def box(extents=(1, 1, 1), colors=RED):
    mesh = trimesh.creation.box(extents)
    mesh.visual.vertex_colors = np.broadcast_to(colors, (8, 4)).astype(np.uint8)
    return mesh


def saved(mesh, path):
    mesh.export(path)
    return path


def views(path, num=4, size=16, **settings):
    """Straight colours and alpha from `num` sides at eye level, channels last."""
    front = settings.pop("front", 0.0)
    asset = read_asset(path, **settings).turned(front)
    cameras, _ = orbit_cameras(num, 0.0, 3.05, 40.0, size)
    return torch.stack(list(picture_asset(asset, cameras))).permute(0, 2, 3, 1)


def middle(view):
    return view[8, 8].tolist()


def half_red_half_green():
    """A quad in the x-y plane, red where x is small, by a texture of two pixels; it is seen from +z."""
    corners = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], float)
    image = Image.new("RGB", (64, 64), "lime")
    image.paste("red", (0, 0, 32, 64))
    image.paste("blue", (0, 0, 64, 8))  # Its upper edge, which is v = 1.
    visual = TextureVisuals(uv=(corners[:, :2] + 1) / 2, material=PBRMaterial(baseColorTexture=image))
    return trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], visual=visual, process=False)


def test_a_texture_is_the_right_way_round(tmp_path):
    for kind in ("glb", "obj"):
        front = views(saved(half_red_half_green(), tmp_path / f"quad.{kind}"), num=1)[0]
        inside = front[..., 3] > 0.99
        rows, columns = inside.nonzero().T
        left, right, up = columns.min() + 1, columns.max() - 1, rows.min()
        assert front[8, left, :3].tolist() == pytest.approx([1, 0, 0], abs=0.01), "+z looks at us, x is to the right"
        assert front[8, right, :3].tolist() == pytest.approx([0, 1, 0], abs=0.01)
        assert front[up, 8, 2] > 0.9, "y is up"


def test_colours_of_vertices_faces_and_materials(tmp_path):
    faces = box()
    faces.visual.face_colors = np.broadcast_to(GREEN, (12, 4))
    plain = trimesh.creation.box()
    plain.visual = TextureVisuals(material=PBRMaterial(baseColorFactor=(0, 0, 255, 255)))
    graded = box(colors=[RED if x < 0 else GREEN for x in box().vertices[:, 0]])
    assert middle(views(saved(box(), tmp_path / "a.glb"))[0]) == [1, 0, 0, 1]
    assert middle(views(saved(faces, tmp_path / "b.ply"))[0]) == [0, 1, 0, 1]
    assert middle(views(saved(plain, tmp_path / "c.glb"))[0]) == [0, 0, 1, 1]
    red, green, blue, alpha = middle(views(saved(graded, tmp_path / "d.glb"))[0])
    assert 0.3 < red < 0.7 and red + green == pytest.approx(1) and (blue, alpha) == (0, 1), "mixed between corners"


def test_parts_keep_their_places_and_colours(tmp_path):
    scene = trimesh.Scene()
    scene.add_geometry(box(), transform=trimesh.transformations.translation_matrix((-1, 0, 0)))
    scene.add_geometry(box(colors=GREEN), transform=trimesh.transformations.translation_matrix((1, 0, 0)))
    front = views(saved(scene, tmp_path / "two.glb"))[0]
    assert front[8, 4, :3].tolist() == [1, 0, 0] and front[8, 11, :3].tolist() == [0, 1, 0] and front[8, 8, 3] == 0


def test_the_front_is_turned_to_azimuth_zero(tmp_path):
    """Green at +x of a file with y up, which is 90 degrees from +z counter-clockwise from above."""
    path = saved(box(colors=[GREEN if x > 0 else RED for x in box().vertices[:, 0]]), tmp_path / "box.glb")
    greens = [[int(view[8, 8, 1] > 0.99) for view in views(path, front=front)] for front in (0.0, 90.0, -90.0)]
    assert greens == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]


def test_either_axis_may_be_up(tmp_path):
    path = saved(box((1, 1, 4)), tmp_path / "tower.ply")
    for up, tall in (("z", True), ("y", False)):
        rows, columns = (views(path, num=2, size=32, up=up)[1][..., 3] > 0.5).nonzero().T
        assert (rows.max() - rows.min() > columns.max() - columns.min()) == tall


def test_any_size_and_place_fill_the_sphere(tmp_path):
    mesh = box((10, 20, 30)).apply_translation((100, 0, 7))
    (part,) = read_asset(saved(mesh, tmp_path / "far.glb")).parts
    assert np.linalg.norm(part.vertices, axis=1) == pytest.approx([ASSET_RADIUS] * len(part.vertices), rel=1e-5)


def test_a_toy_is_pictured_as_the_toybox_photographs_it(tmp_path):
    toy = make_subject(7, "mug")
    (tmp_path / "toy.glb").write_bytes(toy.glb())
    cameras, _ = orbit_cameras(3, 20.0, 3.05, 40.0, 32)
    ours = torch.stack(list(picture_asset(read_asset(tmp_path / "toy.glb"), cameras)))
    for i, view in enumerate(ours):
        rgb, coverage = Studio(toy).render(Shot(120.0 * i, 20.0, ambient=1.0), 32)
        white = view[:3] * view[3:] + 1 - view[3:]
        assert np.abs(view[3].numpy() - coverage).mean() < 0.01
        assert np.abs(white.permute(1, 2, 0).numpy() - rgb).mean() < 0.02, "patterns are coarser at vertices"


def no_file(path):
    pass


def nonsense(path):
    path.write_bytes(b"glTF and then nothing")


def point_cloud(path):
    trimesh.PointCloud(np.eye(3)).export(path.with_suffix(".ply"))
    path.with_suffix(".ply").rename(path)


def colourless(path):
    trimesh.creation.box().export(path)


def half_coloured(path):
    trimesh.Scene([box(), trimesh.creation.icosphere(1)]).export(path)


def flat(path):
    mesh = box()
    mesh.vertices[:] = 1.0
    mesh.export(path)


@pytest.mark.parametrize(
    ("write", "name", "message"),
    [
        (no_file, "a.glb", "a.glb does not exist: give a mesh"),
        (nonsense, "a.glb", "cannot be read as a mesh .*: export it as GLB; readable are .*glb"),
        (nonsense, "a.txt", "cannot be read as a mesh .*: export it as GLB"),
        (point_cloud, "a.ply", "has no triangles: export the asset as a mesh"),
        (colourless, "a.glb", "has no colours: export it with a texture"),
        (half_coloured, "a.glb", "has parts without colours: export it with a texture"),
        (flat, "a.ply", "has no extent"),
    ],
)
def test_what_is_no_asset_is_one_line(tmp_path, write, name, message):
    write(tmp_path / name)
    with pytest.raises(UserError, match=message):
        read_asset(tmp_path / name)


@pytest.mark.parametrize(("limit", "value", "message"), [("MAX_FACES", 11, "12 faces"), ("MAX_BYTES", 99, "GB, more")])
def test_a_huge_asset_is_refused(tmp_path, monkeypatch, limit, value, message):
    path = saved(box(), tmp_path / "box.glb")
    monkeypatch.setattr(assets, limit, value)
    with pytest.raises(UserError, match=f"{message}.*simplify it"):
        read_asset(path)
