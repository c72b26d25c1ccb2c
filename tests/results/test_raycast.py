"""The rasteriser: what it says to be hit lies on the ray of that pixel, in front of everything else."""

import numpy as np
import torch
import trimesh

from db3d_nerfstudio.cameras import image_rays, orbit_cameras
from db3d_nerfstudio.results.raycast import Raycaster


def test_hits_lie_on_their_rays():
    near, far = trimesh.creation.icosphere(2, 0.3), trimesh.creation.box((0.2, 2.0, 2.0))
    near.apply_translation((0.6, 0.1, 0.2))
    far.apply_translation((-0.3, 0.0, 0.0))
    meshes = [(mesh.vertices, mesh.faces) for mesh in (near, far)]
    camera, _ = orbit_cameras(1, 10.0, 3.0, 40.0, 12)
    hits = Raycaster(meshes).look(camera)
    points = np.empty((len(hits.face), 3))
    for index, (vertices, faces) in enumerate(meshes):
        mine = hits.mesh == index
        assert mine.sum() > 5
        points[mine] = (vertices[faces[hits.face[mine]]] * hits.weights[mine][..., None]).sum(1)
    rays = image_rays(camera)
    origins, directions = (
        value[torch.from_numpy(hits.hit).view(-1)].numpy() for value in (rays.origins, rays.directions)
    )
    along = ((points - origins) * directions).sum(1, keepdims=True)
    assert np.abs(origins + along * directions - points).max() < 1e-5
    through_ball = np.linalg.norm(np.cross(directions, near.center_mass - origins), axis=1) < 0.28
    assert (hits.mesh[through_ball] == 0).all(), "the nearer one is seen"


def test_finer_rays_fill_the_same_picture():
    mesh = trimesh.creation.icosphere(3, 0.5)
    camera, _ = orbit_cameras(1, 10.0, 3.0, 40.0, 8)
    caster = Raycaster([(mesh.vertices, mesh.faces)])
    coarse, fine = caster.look(camera).hit, caster.look(camera, supersample=4).hit
    assert fine.shape == (32, 32)
    shares = fine.reshape(8, 4, 8, 4).mean((1, 3))
    assert ((shares > 0.9) <= coarse).all() and ((shares == 0) <= ~coarse).all() and shares[4, 4] == 1
