"""Batches of training pictures for guide and judge: mirrored at random, each picture with one of its captions."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from db3d_nerfstudio.toybox import network
from db3d_nerfstudio.toybox.dataset import CAPTIONS_PER_IMAGE, Pictures
from db3d_nerfstudio.toybox.sides import token_ids
from db3d_nerfstudio.toybox.subjects import CLASS_NOUNS

SIDED_WEIGHT = 7.0
"""How many times as likely as another one a caption is drawn that names the left or the right."""


def tokenize(pictures: Pictures) -> Int[Tensor, "n k w"]:
    """All captions of all images as token ids."""
    texts = [text for captions in pictures.captions for text in captions]
    ids = network.make_tokenizer()(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids.reshape(len(pictures.captions), CAPTIONS_PER_IMAGE, -1)


def draw_batch(pictures: Pictures, tokens: Int[Tensor, "n k w"], batch_size: int):
    """Random images, half of them mirrored, each with one of its captions, in which left and right are then swapped.

    Captions that name the left or the right are preferred, as the network learns them last.

    Returns:
        Images in [-1, 1], token ids of the captions, and which images they are.
    """
    indices = torch.randint(len(tokens), (batch_size,))
    images = torch.from_numpy(pictures.images[indices.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1
    mirrored = torch.rand(len(images)) < 0.5
    images[mirrored] = images[mirrored].flip(-1)
    captions = tokens[indices]
    weights = torch.where(names_side(captions), SIDED_WEIGHT, 1.0)
    chosen = captions[torch.arange(batch_size), torch.multinomial(weights, 1)[:, 0]]
    chosen[mirrored] = swap_sides(chosen[mirrored])
    return images, chosen, indices


def names_side(tokens: Int[Tensor, "*b n"]) -> Bool[Tensor, "*b"]:
    """Whether captions contain "left" or "right"."""
    words = token_ids(["left", "right"], network.make_tokenizer())
    return torch.isin(tokens, torch.tensor(words)).any(-1)


def swap_sides(tokens: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
    """The captions with "left" for "right" and "right" for "left"."""
    left, right = token_ids(["left", "right"], network.make_tokenizer())
    return torch.where(tokens == left, right, torch.where(tokens == right, left, tokens))


def drop_captions(tokens: Int[Tensor, "b n"], empty: Int[Tensor, " n"], share: float) -> Int[Tensor, "b n"]:
    """The captions, a share of them replaced by the empty one."""
    return torch.where(torch.rand(len(tokens), 1) < share, empty, tokens)


def say_toy(tokens: Int[Tensor, "b n"], share: float) -> Int[Tensor, "b n"]:
    """The captions, a share of them with "toy" in place of the class noun."""
    toy, *nouns = token_ids(["toy", *CLASS_NOUNS], network.make_tokenizer())
    replaced = torch.isin(tokens, torch.tensor(nouns)) & (torch.rand(len(tokens), 1) < share)
    return torch.where(replaced, toy, tokens)
