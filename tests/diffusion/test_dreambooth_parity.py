"""Our DreamBooth loss against the published one: diffusers' training scripts, by the functions these are made of.

The scripts weight the subject's error by Min-SNR and leave the class's alone: that is `prior_snr_gamma=None`.
"""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_stable_diffusion_folder
from torch import Tensor

from db3d_nerfstudio.diffusion.dreambooth import DreamBoothConfig, finetune
from db3d_nerfstudio.diffusion.training_set import Prior, TrainingSet
from db3d_nerfstudio.guides.unet.stable_diffusion import StableDiffusionGuide, StableDiffusionGuideConfig

SUBJECT, CLASS, BATCH, SEED = "a sks dog", "a dog", 3, 7


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def guide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionGuide:
    folder = tiny_stable_diffusion_folder(tmp_path_factory.mktemp("sd") / "model", request.param)
    return StableDiffusionGuideConfig(model=str(folder), train_text_encoder=True).setup()


def photos(value: float) -> Tensor:
    return value + 0.1 * torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def published(
    guide: StableDiffusionGuide,
    z: Tensor,
    prompts: list[str],
    t: Tensor,
    eps: Tensor,
    gamma: float | None,
    prior: float,
) -> Tensor:
    """The training scripts' loss (DreamBooth 2208.12242, Min-SNR 2303.09556) of a batch: subject first, then class."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr
    from torch.nn.functional import mse_loss

    scheduler = DDPMScheduler.from_pretrained(guide.source, subfolder="scheduler")
    output = guide.unet(scheduler.add_noise(z, eps, t), t, guide.embed(prompts)).sample
    is_v = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(z, eps, t) if is_v else eps
    (mine, others), (target, target_of_others) = output.chunk(2), target.chunk(2)
    if gamma is None:
        instance = mse_loss(mine, target)
    else:
        snr = compute_snr(scheduler, t[: len(mine)])
        weights = snr.clamp(max=gamma) / (snr + 1 if is_v else snr)
        instance = (weights * mse_loss(mine, target, reduction="none").mean(dim=(1, 2, 3))).mean()
    return instance + prior * mse_loss(others, target_of_others)


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("prior", [1.0, 0.3])
def test_first_loss_of_a_fine_tuning_is_the_published_one(
    guide: StableDiffusionGuide, gamma: float | None, prior: float
) -> None:
    config = DreamBoothConfig(
        learning_rate=0.0, batch_size=BATCH, snr_gamma=gamma, prior_loss_weight=prior, prior_snr_gamma=None
    )
    subject, others = photos(0.8), photos(0.3)
    data = TrainingSet(subject, [{SUBJECT: 1.0}] * 2, prior=Prior(others, [CLASS] * len(others)))
    (ours,) = finetune(guide, data, config, max_train_steps=1, seed=SEED)

    draw = torch.Generator().manual_seed(SEED)  # The batch that `finetune` drew.
    z = torch.cat([guide.encode(images)[torch.randint(2, (BATCH,), generator=draw)] for images in (subject, others)])
    t = torch.randint(1000, (2 * BATCH,), generator=draw)
    eps = torch.randn(z.shape, generator=draw)
    theirs = published(guide, z, [SUBJECT] * BATCH + [CLASS] * BATCH, t, eps, gamma, prior)
    assert ours == pytest.approx(theirs.item(), rel=1e-5)
