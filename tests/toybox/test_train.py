"""The recipes of guide and judge: they learn, and a killed training goes on as if nothing had happened."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from db3d_nerfstudio.toybox import batches, dataset, network, release, sides, train, train_judge
from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig
from db3d_nerfstudio.toybox.judge import Judge, load_judge
from db3d_nerfstudio.toybox.muon import Muon, orthogonalise


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return dataset.load_dataset(dataset.make_dataset(dataset.DatasetConfig(root, 4, 2, 4, workers=1)))


def run(trainer: train.Trainer, pictures, steps: int) -> list[float]:
    tokens = batches.tokenize(pictures)
    losses = []
    for _ in range(steps):
        torch.manual_seed(trainer.step)
        losses.append(trainer.train_step(*batches.draw_batch(pictures, tokens, trainer.config.batch_size)[:2]))
    return losses


@pytest.mark.slow
def test_a_killed_training_ends_like_an_unbroken_one(tmp_path, pictures):
    def config(name):
        return train.TrainConfig(tmp_path / name, num_images=64, batch_size=4, seed=1)

    whole = train.Trainer(config("whole"))
    expected = run(whole, pictures, 4)
    first = train.Trainer(config("broken"))
    start = run(first, pictures, 2)
    first.save()
    second = train.Trainer(config("broken"))
    assert second.step == 2
    assert start + run(second, pictures, 2) == pytest.approx(expected, rel=1e-5)
    for one, other in zip(whole.modules.parameters(), second.modules.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    guide = ToyboxGuideConfig(model=tmp_path / "broken" / "guide").setup(device="cpu")
    assert guide.prediction_type == "sample" and guide.embed(["a photo of a red dog, side view"]).shape[1] == 25


def test_a_released_guide_trains_on_in_full_precision(tmp_path):
    unet, text_encoder = network.make_unet(), network.make_text_encoder()
    network.save_guide(tmp_path, unet.half(), text_encoder.half())
    parts = train.read_guide(tmp_path)
    assert {weight.dtype for part in parts for weight in part.parameters()} == {torch.float32}


def test_a_guide_of_fewer_words_learns_the_new_ones(tmp_path):
    unet, text_encoder = network.make_unet(), network.make_text_encoder()
    text_encoder.resize_token_embeddings(len(network.make_tokenizer()) - 2)
    network.save_guide(tmp_path, unet, text_encoder)
    embedding = train.read_guide(tmp_path)[1].get_input_embeddings().weight
    assert len(embedding) == len(network.make_tokenizer())
    torch.testing.assert_close(embedding[:-2], text_encoder.get_input_embeddings().weight)


def test_mirrored_pictures_change_left_and_right_in_their_captions():
    tokenizer = network.make_tokenizer()
    tokens = tokenizer(["a dog, left side view", "a dog, back right view", "a dog, front view"]).input_ids
    swapped = [batches.swap_sides(torch.tensor([row]))[0] for row in tokens]
    said = [tokenizer.decode(row, skip_special_tokens=True) for row in swapped]
    assert said == ["a dog , right side view", "a dog , back left view", "a dog , front view"]
    images = np.zeros((1, 64, 64, 3), np.uint8)
    images[:, :, :32] = 255
    pictures = dataset.Pictures(images, [["a dog, left side view"] * 4], np.zeros((1, 3), int))
    torch.manual_seed(0)
    drawn, captions, _ = batches.draw_batch(pictures, batches.tokenize(pictures), 16)
    light_left = drawn[:, 0, 0, 0] > 0
    says_left = (captions == tokenizer.convert_tokens_to_ids("left")).any(1)
    assert torch.equal(light_left, says_left) and 0 < says_left.sum() < 16


MEAN_OF_TWO = """
import torch
from db3d_nerfstudio.toybox.processes import average_gradients, processes
rank, num = processes()
layer = torch.nn.Linear(2, 1)
for weight in layer.parameters():
    weight.grad = torch.full_like(weight, 1.0 + 2 * rank)
average_gradients(layer)
assert num == 2 and all((weight.grad == 2).all() for weight in layer.parameters())
"""


@pytest.mark.slow
def test_several_processes_move_by_the_mean_of_their_gradients(tmp_path):
    (tmp_path / "mean.py").write_text(MEAN_OF_TWO)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, tmp_path / "mean.py"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_left_and_right_become_slopes_that_mirror_each_other():
    prompts = ["a duck, left side view", "a duck, overhead back right view", "a duck, side view"]
    tokenizer = network.make_tokenizer()
    side = sides.side(tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids, tokenizer)
    assert side.tolist() == [1, -1, 0]
    z = torch.randn(3, 48, 2, 5)
    told = sides.with_side(z, side)
    assert told.shape == (3, 49, 2, 5) and torch.equal(told[:, :48], z)
    slope = torch.tensor([-1, -0.5, 0, 0.5, 1]).expand(2, 5)
    torch.testing.assert_close(told[:, 48], torch.stack([slope, slope.flip(-1), torch.zeros(2, 5)]))


def test_high_noise_is_drawn_more_often_in_proportion():
    torch.manual_seed(0)
    t = train.draw_timesteps(40_000, 1000, power=4.0)
    assert t.min() >= 0 and t.max() == 999
    shares = torch.histc(t.float(), bins=4, min=0, max=1000) / len(t)
    torch.testing.assert_close(shares, torch.tensor([1, 31, 211, 781]) / 1024, atol=0.01, rtol=0)
    even = torch.histc(train.draw_timesteps(40_000, 1000, power=0.0).float(), bins=4, min=0, max=1000) / 40_000
    torch.testing.assert_close(even, torch.full((4,), 0.25), atol=0.01, rtol=0)


def test_captions_that_name_a_side_are_preferred():
    captions = [["a dog, left side view", "a dog", "a dog, front view", "a dog, back view"]]
    pictures = dataset.Pictures(np.zeros((1, 64, 64, 3), np.uint8), captions, np.zeros((1, 3), int))
    torch.manual_seed(0)
    drawn = batches.draw_batch(pictures, batches.tokenize(pictures), 1000)[1]
    assert batches.names_side(drawn).float().mean().item() == pytest.approx(7 / (7 + 3), abs=0.05)


def test_bfloat16_rounds_activations_and_not_weights(tmp_path, pictures):
    def first_loss(dtype):
        trainer = train.Trainer(train.TrainConfig(tmp_path / dtype, batch_size=2, dtype=dtype))
        (loss,) = run(trainer, pictures, 1)
        assert all(weight.dtype == torch.float32 for weight in trainer.modules.parameters())
        return loss

    exact, rounded = first_loss("float32"), first_loss("bfloat16")
    assert exact != rounded and rounded == pytest.approx(exact, rel=0.02)


def test_the_rate_warms_up_stays_and_falls():
    assert train.rate_at(0.0, 0, cooldown=0.4) == pytest.approx(1 / 100)
    assert train.rate_at(0.5, 5000, cooldown=0.4) == 1.0
    assert train.rate_at(0.8, 8000, cooldown=0.4) == pytest.approx(0.5)
    assert train.rate_at(1.0, 9999, cooldown=0.4) == 0.02


def test_muon_moves_inner_weights_and_adam_the_rest():
    unet = network.make_unet()
    inner, other = train.split_parameters(unet)
    assert len(inner) + len(other) == len(list(unet.parameters())) and all(weight.ndim >= 2 for weight in inner)
    ends = {id(unet.conv_in.weight), id(unet.conv_out.weight)}
    assert ends <= {id(weight) for weight in other}


def test_orthogonalise_flattens_the_spectrum_and_keeps_the_directions():
    torch.manual_seed(0)
    matrix = torch.randn(24, 10) * torch.logspace(0, -1, 10)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    result = left.T @ orthogonalise(matrix) @ right.T  # Diagonal in the bases of the matrix itself.
    assert (result - torch.diag(result.diagonal())).abs().max() < 1e-4
    assert 0.6 < result.diagonal().min() and result.diagonal().max() < 1.3


def test_a_step_of_muon_has_the_same_length_whatever_the_gradients_scale():
    moved = []
    for scale in (1.0, 1000.0):
        weight = torch.nn.Parameter(torch.zeros(8, 4, 3, 3))
        weight.grad = scale * torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
        Muon([weight], lr=0.1).step()
        moved.append(weight.detach())
    torch.testing.assert_close(*moved, atol=1e-5, rtol=1e-3)
    assert moved[0].norm() == pytest.approx(0.1 * 8**0.5, rel=0.2)  # Eight singular values of about 0.1.


def test_captions_are_dropped_for_guidance():
    captions, empty = torch.zeros(400, 5, dtype=torch.long), torch.full((5,), -7)
    chosen = batches.drop_captions(captions, empty, 0.25)
    assert ((chosen == -7).all(1) | (chosen == 0).all(1)).all()
    assert 0.15 < (chosen == -7).all(1).float().mean() < 0.35


def test_a_share_of_captions_says_toy():
    tokenizer = network.make_tokenizer()
    captions = tokenizer(["a photo of a red dog, side view"] * 400, return_tensors="pt").input_ids
    said = tokenizer.batch_decode(batches.say_toy(captions, 0.25), skip_special_tokens=True)
    assert 60 < sum(text == "a photo of a red toy , side view" for text in said) < 140
    assert sum(text == "a photo of a red dog , side view" for text in said) == 400 - said.count(
        "a photo of a red toy , side view"
    )


@pytest.mark.slow
def test_the_judge_learns_and_is_saved_whole(tmp_path, pictures):
    torch.manual_seed(0)
    judge, tokens = Judge(), batches.tokenize(pictures)[:, 0]
    rgb = torch.from_numpy(pictures.images).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(pictures.labels)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        losses.append(judge.loss(rgb, tokens, labels))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    save_file(judge.state_dict(), tmp_path / "model.safetensors")
    loaded = load_judge(tmp_path / "model.safetensors")
    opinion = loaded.look(rgb)
    torch.testing.assert_close(opinion.embedding, judge.eval().look(rgb).embedding)
    torch.testing.assert_close(opinion.embedding.norm(dim=-1), torch.ones(len(rgb)))
    right = train_judge.accuracy(loaded, pictures)
    assert set(right) == {"class_noun", "main_color", "view"} and all(0 <= value <= 1 for value in right.values())


def test_unclear_views_do_not_count(pictures):
    labels = torch.from_numpy(np.array(pictures.labels))
    judge, tokens = Judge().eval(), batches.tokenize(pictures)[:, 0]
    rgb = torch.from_numpy(pictures.images).permute(0, 3, 1, 2).float() / 255
    labels[:, 2] = 0
    with_views = judge.loss(rgb, tokens, labels)
    labels[1:, 2] = -1
    assert not torch.isclose(with_views, judge.loss(rgb, tokens, labels))


def test_a_release_is_what_was_trained_at_half_precision(tmp_path):
    network.save_guide(tmp_path / "guide", network.make_unet(), network.make_text_encoder())
    judge = Judge().eval()
    save_file(judge.state_dict(), tmp_path / "judge.safetensors")
    files = {"guide": tmp_path / "guide", "judge": tmp_path / "judge.safetensors"}
    release.main(release.ReleaseConfig(**files, weights=tmp_path / "weights"))
    size = sum(file.stat().st_size for file in (tmp_path / "weights").rglob("*") if file.is_file())
    assert str(tmp_path) not in (tmp_path / "weights" / "guide" / "unet" / "config.json").read_text()
    assert size < 20e6  # The project ships at most 60 MB.
    one, other = (ToyboxGuideConfig(model=tmp_path / path).setup(device="cpu") for path in ("guide", "weights/guide"))
    z, text = torch.randn(1, 48, 16, 16), one.embed(["a photo of a red dog"])
    assert other.unet.dtype == torch.float32
    eps = one.predict_noise(z, torch.tensor([500]), text)
    torch.testing.assert_close(other.predict_noise(z, torch.tensor([500]), text), eps, atol=0.02, rtol=0)
    rgb = torch.rand(2, 3, 64, 64)
    loaded = load_judge(tmp_path / "weights" / "judge" / "model.safetensors")
    torch.testing.assert_close(loaded.look(rgb).embedding, judge.look(rgb).embedding, atol=5e-3, rtol=0)


@pytest.mark.slow
def test_the_judge_is_trained_measured_and_saved(tmp_path, monkeypatch, capsys):
    held_out = dataset.DatasetConfig(tmp_path, 2, 2, 2, first_seed=train_judge.FIRST_HELD_OUT_SEED, workers=1)
    monkeypatch.setattr(train_judge, "DatasetConfig", lambda *args, **kwargs: held_out)
    data = dataset.DatasetConfig(tmp_path, 2, 2, 2, first_seed=train_judge.FIRST_JUDGE_SEED, workers=1)
    config = train_judge.TrainJudgeConfig(tmp_path / "judge", data, num_images=16, batch_size=4, dtype="bfloat16")
    train_judge.main(config)
    assert "'view':" in capsys.readouterr().out
    load_judge(tmp_path / "judge" / "model.safetensors").look(torch.rand(1, 3, 64, 64))
