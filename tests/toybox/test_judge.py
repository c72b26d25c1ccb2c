"""The judge and its training: batches, what counts in its loss, and that it learns."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from db3d_nerfstudio.toybox import dataset, network, train_judge
from db3d_nerfstudio.toybox.judge import Judge, load_judge


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return dataset.load_dataset(dataset.make_dataset(dataset.DatasetConfig(root, 4, 2, 4, workers=1)))


def test_mirrored_pictures_change_left_and_right_in_their_captions():
    tokenizer = network.make_tokenizer()
    tokens = tokenizer(["a dog, left side view", "a dog, back right view", "a dog, front view"]).input_ids
    swapped = [train_judge.swap_sides(torch.tensor([row]))[0] for row in tokens]
    said = [tokenizer.decode(row, skip_special_tokens=True) for row in swapped]
    assert said == ["a dog , right side view", "a dog , back left view", "a dog , front view"]
    images = np.zeros((1, 64, 64, 3), np.uint8)
    images[:, :, :32] = 255
    pictures = dataset.Pictures(images, [["a dog, left side view"] * 4], np.zeros((1, 3), int))
    torch.manual_seed(0)
    drawn, captions, _ = train_judge.draw_batch(pictures, train_judge.tokenize(pictures), 16)
    light_left = drawn[:, 0, 0, 0] == 1
    says_left = (captions == tokenizer.convert_tokens_to_ids("left")).any(1)
    assert torch.equal(light_left, says_left) and 0 < says_left.sum() < 16


def test_captions_that_name_a_side_are_preferred():
    captions = [["a dog, left side view", "a dog", "a dog, front view", "a dog, back view"]]
    pictures = dataset.Pictures(np.zeros((1, 64, 64, 3), np.uint8), captions, np.zeros((1, 3), int))
    torch.manual_seed(0)
    drawn = train_judge.draw_batch(pictures, train_judge.tokenize(pictures), 1000)[1]
    assert train_judge.names_side(drawn).float().mean().item() == pytest.approx(7 / (7 + 3), abs=0.05)


@pytest.mark.slow
def test_the_judge_learns_and_is_saved_whole(tmp_path, pictures):
    torch.manual_seed(0)
    judge, tokens = Judge(), train_judge.tokenize(pictures)[:, 0]
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
    judge, tokens = Judge().eval(), train_judge.tokenize(pictures)[:, 0]
    rgb = torch.from_numpy(pictures.images).permute(0, 3, 1, 2).float() / 255
    labels[:, 2] = 0
    with_views = judge.loss(rgb, tokens, labels)
    labels[1:, 2] = -1
    assert not torch.isclose(with_views, judge.loss(rgb, tokens, labels))


@pytest.mark.slow
def test_the_judge_is_trained_measured_and_saved(tmp_path, monkeypatch, capsys):
    held_out = dataset.DatasetConfig(tmp_path, 2, 2, 2, first_seed=train_judge.FIRST_HELD_OUT_SEED, workers=1)
    monkeypatch.setattr(train_judge, "DatasetConfig", lambda *args, **kwargs: held_out)
    data = dataset.DatasetConfig(tmp_path, 2, 2, 2, first_seed=train_judge.FIRST_JUDGE_SEED, workers=1)
    config = train_judge.TrainJudgeConfig(tmp_path / "judge", data, num_images=16, batch_size=4, dtype="bfloat16")
    train_judge.main(config)
    assert "'view':" in capsys.readouterr().out
    load_judge(tmp_path / "judge" / "model.safetensors").look(torch.rand(1, 3, 64, 64))
