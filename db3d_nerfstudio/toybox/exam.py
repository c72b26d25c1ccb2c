"""The guide's exam: `python -m db3d_nerfstudio.toybox.exam`.

Does the judge find in the guide's samples what captions asked for that no training ever saw?
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from db3d_nerfstudio.toybox.captions import VIEWS, caption
from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig
from db3d_nerfstudio.toybox.judge import HEADS, SHIPPED_JUDGE, load_judge
from db3d_nerfstudio.toybox.scene import CONTEXTS
from db3d_nerfstudio.toybox.subjects import Traits, draw_traits

FIRST_EXAM_SEED = 4_000_000


@dataclass
class ExamConfig:
    """Which guide sits the exam."""

    guide: ToyboxGuideConfig = field(default_factory=ToyboxGuideConfig)
    """The guide."""
    judge: Path = SHIPPED_JUDGE
    """The judge's weights."""
    num_captions: int = 1000
    """Captions, one sample each."""
    guidance_scale: float = 4.0
    """Classifier-free guidance of the samples."""
    sample_steps: int = 25
    """DDIM steps of a sample."""
    sheet: Path | None = None
    """Picture of the first 64 samples."""


def draw_question(seed: int) -> tuple[str, Traits, str]:
    """A full caption, and the traits and view that it names."""
    rng = np.random.default_rng(seed)
    traits, view = draw_traits(rng), str(rng.choice(VIEWS))
    context = str(rng.choice(list(CONTEXTS))) if rng.random() < 0.3 else None
    return caption(traits, context, view), traits, view


@torch.no_grad()
def main(config: ExamConfig) -> dict[str, float]:
    """Sample, judge, and print the share of samples with the right class, main colour and view."""
    from rich.progress import track
    from torchvision.utils import save_image

    from db3d_nerfstudio.diffusion.guidance import Conditioning
    from db3d_nerfstudio.diffusion.sampling import SamplingConfig, sample

    guide, judge = config.guide.setup(device="cpu"), load_judge(config.judge)
    questions = [draw_question(FIRST_EXAM_SEED + index) for index in range(config.num_captions)]
    generator = torch.Generator().manual_seed(0)
    sampling = SamplingConfig(config.sample_steps, config.guidance_scale)
    right = {name: [] for name in HEADS}
    for start in track(range(0, len(questions), 32), "Exam"):
        asked = questions[start : start + 32]
        conditioning = Conditioning.of(guide, [question[0] for question in asked])
        images = sample(guide, conditioning, sampling, generator)
        if start == 0 and config.sheet is not None:
            save_image(images, config.sheet, nrow=8, padding=0)
        opinion = judge.look(images)
        for name, names in HEADS.items():
            wanted = [view if name == "view" else getattr(traits, name) for _, traits, view in asked]
            said = [names[index] for index in getattr(opinion, name).argmax(-1).tolist()]
            right[name] += [a == b for a, b in zip(said, wanted, strict=True)]
    result = {name: round(float(np.mean(values)), 4) for name, values in right.items()}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    import tyro

    main(tyro.cli(ExamConfig))
