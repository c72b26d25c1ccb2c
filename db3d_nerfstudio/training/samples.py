"""What a guide makes of a prompt: a sheet of samples, one column for each view."""

import torch
from jaxtyping import Float
from torch import Tensor

from db3d_nerfstudio.cameras import Views
from db3d_nerfstudio.diffusion.prompt_bank import PromptBank
from db3d_nerfstudio.diffusion.sampling import SamplingConfig, sample
from db3d_nerfstudio.guides.base import DiffusionGuide
from db3d_nerfstudio.images import contact_sheet

FILE = "samples.png"
ROWS = 2


def sample_sheet(guide: DiffusionGuide, prompt: str, config: SamplingConfig, seed: int) -> Float[Tensor, "3 h w"]:
    """Samples of the prompt from the front, the side, the back and above; the same noise for the same seed."""
    views = Views(
        elevation=torch.tensor([15.0, 15.0, 15.0, 75.0]),
        azimuth=torch.tensor([0.0, 90.0, -180.0, 0.0]),
        radius=torch.full((4,), 3.0),
        fov=torch.full((4,), 40.0),
    )
    conditioning, generator = PromptBank(guide, prompt)(views), torch.Generator().manual_seed(seed)
    return contact_sheet([sample(guide, conditioning, config, generator) for _ in range(ROWS)])
