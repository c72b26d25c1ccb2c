"""Side and view as channels of the guide's input."""

import torch

from db3d_nerfstudio.toybox import network, sides


def test_views_are_told_in_channels():
    tokenizer = network.make_tokenizer()
    prompts = ["a duck, left side view", "a duck, overhead back right view", "a duck"]
    told = sides.hints(tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids, tokenizer)
    assert told.tolist() == [[1, 0, 1, 0, 0], [-1, 0, 0, 1, 1], [0, 0, 0, 0, 0]]
    z = torch.randn(3, 16, 2, 3)
    channels = sides.with_hints(z, told)
    assert torch.equal(channels[:, :16], z)
    assert channels[1, 16].tolist() == [[1, 0, -1], [1, 0, -1]] and (channels[1, 19:] == 1).all()
    assert (channels[1, 17:19] == 0).all() and (channels[2, 16:] == 0).all()


def test_left_and_right_become_slopes_that_mirror_each_other():
    prompts = ["a duck, left side view", "a duck, overhead back right view", "a duck, side view"]
    tokenizer = network.make_tokenizer()
    tokens = tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids
    assert sides.side(tokens, tokenizer).tolist() == [1, -1, 0]
    z = torch.randn(3, 16, 2, 5)
    told = sides.with_hints(z, sides.hints(tokens, tokenizer))
    assert told.shape == (3, 16 + sides.HINTS, 2, 5) and torch.equal(told[:, :16], z)
    slope = torch.tensor([-1, -0.5, 0, 0.5, 1]).expand(2, 5)
    torch.testing.assert_close(told[:, 16], torch.stack([slope, slope.flip(-1), torch.zeros(2, 5)]))
