"""The guide's training: it learns v from encoded pictures, and goes on where it was."""

from dataclasses import replace

import pytest
import torch

from db3d_nerfstudio.toybox import dataset, latents, network, sides, train_unet
from db3d_nerfstudio.toybox.course import split_parameters
from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig


@pytest.mark.slow
def test_the_guide_learns_and_goes_on_where_it_was(tmp_path, pictures):
    config = train_unet.TrainUnetConfig(tmp_path, batch_size=8, dtype="bfloat16", matrix_learning_rate=3e-3)

    def losses(learner, steps):
        result = []
        for _ in range(steps):
            torch.manual_seed(learner.course.step)
            result.append(learner.step(*latents.draw_latents(pictures, 8, 0.1, 0.05)))
        return result

    learner = train_unet.Learner(config)
    learner.course.step = 100  # Past the warm-up.
    start = losses(learner, 3)
    learner.course.save()
    resumed = train_unet.Learner(replace(config, seed=0))
    end = losses(learner, 2)
    assert losses(resumed, 2) == end and end[-1] < 0.9 * start[0]
    for one, other in zip(learner.course.modules.parameters(), resumed.course.modules.parameters(), strict=True):
        assert torch.equal(one, other)


def test_v_is_what_is_learnt(tmp_path, pictures, monkeypatch):
    learner = train_unet.Learner(train_unet.TrainUnetConfig(tmp_path, batch_size=2))
    z, tokens = latents.draw_latents(pictures, 2, 0.0, 0.0)
    seen = {}

    def perfect(inputs, t, text):
        abar = learner.alphas_cumprod[t][:, None, None, None]
        seen["channels"] = inputs.shape[1]
        eps = (inputs[:, :16] - abar.sqrt() * z) / (1 - abar).sqrt()
        return type("Output", (), {"sample": abar.sqrt() * eps - (1 - abar).sqrt() * z})

    monkeypatch.setattr(learner, "_network", perfect)
    assert learner.loss(z, tokens).item() == pytest.approx(0, abs=1e-8) and seen["channels"] == 16 + sides.HINTS


def test_bfloat16_rounds_activations_and_not_weights(tmp_path, pictures):
    def first_loss(dtype):
        learner = train_unet.Learner(train_unet.TrainUnetConfig(tmp_path / dtype, batch_size=2, dtype=dtype))
        torch.manual_seed(0)
        loss = learner.step(*latents.draw_latents(pictures, 2, 0.1, 0.05))
        assert all(weight.dtype == torch.float32 for weight in learner.course.modules.parameters())
        return loss

    exact, rounded = first_loss("float32"), first_loss("bfloat16")
    assert exact != rounded and rounded == pytest.approx(exact, rel=0.02)


def test_muon_moves_inner_weights_and_adam_the_rest():
    networks = torch.nn.ModuleDict({"unet": network.make_unet(), "text_encoder": network.make_text_encoder()})
    inner, other = split_parameters(networks, train_unet.ENDS)
    assert len(inner) + len(other) == len(list(networks.parameters())) and all(weight.ndim >= 2 for weight in inner)
    unet, words = networks["unet"], networks["text_encoder"].get_input_embeddings()
    ends = {id(unet.conv_in.weight), id(unet.conv_out.weight), id(words.weight)}
    assert ends <= {id(weight) for weight in other}


def test_high_noise_is_drawn_more_often_in_proportion():
    torch.manual_seed(0)
    t = train_unet.draw_timesteps(40_000, 1000, power=4.0)
    assert t.min() >= 0 and t.max() == 999
    shares = torch.histc(t.float(), bins=4, min=0, max=1000) / len(t)
    torch.testing.assert_close(shares, torch.tensor([1, 31, 211, 781]) / 1024, atol=0.01, rtol=0)
    even = torch.histc(train_unet.draw_timesteps(40_000, 1000, power=0.0).float(), bins=4, min=0, max=1000) / 40_000
    torch.testing.assert_close(even, torch.full((4,), 0.25), atol=0.01, rtol=0)


@pytest.mark.slow
def test_everything_from_photographs_to_a_guide_in_one_command(tmp_path, codec, monkeypatch):
    codec.save_pretrained(tmp_path / "vae")
    data = dataset.DatasetConfig(tmp_path / "data", 2, 2, 2, toy_share=0.5, workers=1)
    sheets = []
    monkeypatch.setattr(train_unet, "sample_sheet", lambda *args, device: sheets.append((*args, device)))
    config = train_unet.TrainUnetConfig(tmp_path / "unet", vae=tmp_path / "vae", data=data, num_images=8, batch_size=4)
    train_unet.main(config)
    assert sheets == [(tmp_path / "unet" / "guide", tmp_path / "unet" / "samples.png", "cpu")]
    assert "8 images" in (tmp_path / "unet" / "log.txt").read_text()
    ToyboxGuideConfig(model=tmp_path / "unet" / "guide").setup(device="cpu").embed(["a photo of a red toy"])
