"""The examiner: names what the judge has no head for, which is the hand of a side view, the pattern and the accessory.

It is a part of the guide's exam only. The judge stays as it is, so that earlier results remain comparable;
the examiner begins with the judge's image tower.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from db3d_nerfstudio.cameras import wrap_degrees
from db3d_nerfstudio.toybox.dataset import Scene
from db3d_nerfstudio.toybox.judge import load_judge
from db3d_nerfstudio.toybox.subjects import PATTERNS

SHIPPED_EXAMINER = Path(__file__).parent / "weights" / "examiner" / "model.safetensors"
ACCESSORIES = ("hat", "scarf", "flag")
HEADS: dict[str, tuple[str | None, ...]] = {
    "hand": ("left", "right"),
    "pattern": (None, *PATTERNS),
    "accessory": (None, *ACCESSORIES),
}
"""The attributes that the examiner names, each with its classes."""
SIDEWAYS = 22.5
"""Views closer to straight from the front or the back show no hand, degrees of azimuth."""


class Examiner(nn.Module):
    """The judge's image tower with other heads."""

    def __init__(self):
        super().__init__()
        judge = load_judge()
        self.image_tower = judge.image_tower.requires_grad_(True)
        width = judge.image_projection.in_features
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(names)) for name, names in HEADS.items()})

    def look(self, rgb: Float[Tensor, "b 3 64 64"]) -> dict[str, Float[Tensor, "b _"]]:
        """Logits over the names of each head for images in [0, 1]."""
        features = self.image_tower(rgb * 2 - 1)
        return {name: head(features) for name, head in self.heads.items()}


def label(scene: Scene) -> list[int]:
    """Indices of a photo's hand, pattern and accessory in `HEADS`; -1 for a hand that the view does not show."""
    azimuth = wrap_degrees(scene.shot.azimuth)
    sideways = SIDEWAYS < abs(azimuth) < 180 - SIDEWAYS
    hand = (0 if azimuth > 0 else 1) if sideways else -1
    traits = scene.traits
    return [hand, HEADS["pattern"].index(traits.pattern), HEADS["accessory"].index(traits.accessory)]


def load_examiner(path: Path = SHIPPED_EXAMINER) -> Examiner:
    """The examiner that ships with the package, in eval mode."""
    from safetensors.torch import load_file

    examiner = Examiner()
    examiner.load_state_dict(load_file(path))
    return examiner.eval().requires_grad_(False)


def names(logits: Float[Tensor, "b k"], head: str) -> list[str | None]:
    """The names that the examiner finds likeliest."""
    return [HEADS[head][index] for index in torch.argmax(logits, -1).tolist()]
