"""The embedded guide is a guide like any other."""

import pytest
import torch

from db3d_nerfstudio.diffusion.guidance import Conditioning
from db3d_nerfstudio.diffusion.sampling import TranslationConfig, translate
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig


def test_it_encodes_draws_and_has_a_fingerprint(guide_folder, codec):
    guide = ToyboxGuideConfig(model=guide_folder).setup(device="cpu")
    assert guide.prediction_type == "v_prediction" and guide.resolution == 64 and guide.tells_sides
    rgb = torch.rand(2, 3, 64, 64, requires_grad=True)
    z = guide.encode(rgb)
    z.square().sum().backward()
    assert z.shape == (2, 16, 8, 8) and rgb.grad.abs().sum() > 0
    through = codec.decode(codec.encode(rgb * 2 - 1).latent).sample / 2 + 0.5
    torch.testing.assert_close(guide.decode(z), through.clamp(0, 1))
    asked = Conditioning.of(guide, [f"a photo of a sks dog, {hand} side view" for hand in ("left", "right")])
    assert asked.text[:, -1, :5].tolist() == [[1, 0, 1, 0, 0], [-1, 0, 1, 0, 0]]
    drawn = translate(guide, rgb.detach(), asked, TranslationConfig(steps=2))
    assert drawn.shape == rgb.shape and drawn.isfinite().all()
    assert "vae" in guide.modules() and guide.fingerprint() == guide.fingerprint()


def test_an_unknown_word_is_answered_with_words_that_it_has(guide_folder):
    guide = ToyboxGuideConfig(model=guide_folder).setup(device="cpu")
    with pytest.raises(UserError, match=r'no token for the word "quokka".*It has tokens for: dog, .*red, '):
        guide.check_prompts(["a photo of a sks quokka"])
    with pytest.raises(UserError, match="It has tokens for: dog"):
        guide.check_prompts(["a photo of a sks dogg"])
