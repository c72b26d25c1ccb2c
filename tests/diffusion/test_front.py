"""The front of a thing, by an analytic guide that expects another shade of every side."""

import pytest
import torch
from tiny import GaussianGuideConfig

from db3d_nerfstudio.cameras import orbit_cameras
from db3d_nerfstudio.diffusion.front import guess_front
from db3d_nerfstudio.words import direction_names, seen_from

PROMPT = "a photo of a robot"


@pytest.mark.parametrize(("sided", "steps"), [(True, 8), (False, 4)])
@pytest.mark.parametrize("front", [0, 2, 3])
def test_the_front_is_found_from_all_renders_together(monkeypatch, sided, steps, front):
    names = direction_names(sided)[:steps]
    means = {seen_from(PROMPT, name): 0.1 + 0.8 * i / steps for i, name in enumerate(dict.fromkeys(names))}
    guide = GaussianGuideConfig(means=means, resolution=4).setup()
    monkeypatch.setattr(type(guide), "tells_sides", sided)
    _, views = orbit_cameras(steps, 10.0, 3.0, 40.0, 4)
    shown = [names[(i - front) % steps] for i in range(steps)]
    shades = torch.tensor([means[seen_from(PROMPT, name)] for name in shown])
    shades[1] = 0.5  # One render that misleads.
    renders = shades[:, None, None, None].expand(-1, 3, 4, 4)
    assert guess_front(guide, renders, views, PROMPT, seed=0) % 360 == front * 360 / steps
