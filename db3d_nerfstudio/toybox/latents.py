"""The training pictures as latents: encoded once, with their mirror images, beside the shards that they come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from db3d_nerfstudio.guides.base import digest
from db3d_nerfstudio.toybox import network
from db3d_nerfstudio.toybox.captions import draw_caption, mirrored
from db3d_nerfstudio.toybox.dataset import Scene, load_images, load_scenes, write_arrays
from db3d_nerfstudio.toybox.sides import token_ids
from db3d_nerfstudio.toybox.subjects import CLASS_NOUNS

if TYPE_CHECKING:
    from diffusers import AutoencoderDC


@dataclass(frozen=True)
class LatentPictures:
    """A data set in memory, as the guide sees it."""

    z: Float[Tensor, "2 n c hz wz"]
    """Half precision, of standard deviation 1: the pictures, then their mirror images."""
    scenes: list[Scene]
    """Scenes to draw their captions from."""


@torch.no_grad()
def encode(vae: AutoencoderDC, rgb: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hz wz"]:
    """Latents of images in [0, 1], of standard deviation 1 over the training pictures."""
    return vae.encode(rgb * 2 - 1)[0].float() * vae.config["scaling_factor"]


def make_latents(paths: list[Path], vae: AutoencoderDC, dtype: torch.dtype = torch.float32) -> list[Path]:
    """Encode the shards that this codec has not encoded yet, each into a file of its own.

    Args:
        dtype: Precision of the codec.
    """
    from rich.progress import track

    folder = paths[0].parent / f"latents_{digest(vae.named_parameters())}"
    folder.mkdir(exist_ok=True)
    device = next(vae.parameters()).device
    for path in track([path for path in paths if not (folder / path.name).exists()], "Encoding pictures"):
        images = torch.from_numpy(load_images([path]))
        halves = []
        for mirror in (False, True):
            parts = []
            for part in images.split(500):
                rgb = part.to(device).permute(0, 3, 1, 2).float() / 255
                rgb = (rgb.flip(-1) if mirror else rgb).contiguous(memory_format=torch.channels_last)
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    parts.append(encode(vae, rgb).half().cpu())
            halves.append(torch.cat(parts))
        write_arrays(folder / path.name, z=torch.stack(halves).numpy())
    return [folder / path.name for path in paths]


def load_latents(paths: list[Path], latents: list[Path]) -> LatentPictures:
    """All shards and their latents, in memory."""
    z = np.concatenate([np.load(path)["z"] for path in latents], 1)
    return LatentPictures(torch.from_numpy(z), load_scenes(paths))


def drop_captions(tokens: Int[Tensor, "b n"], empty: Int[Tensor, " n"], share: float) -> Int[Tensor, "b n"]:
    """The captions, a share of them replaced by the empty one."""
    return torch.where(torch.rand(len(tokens), 1) < share, empty, tokens)


def say_toy(tokens: Int[Tensor, "b n"], share: float) -> Int[Tensor, "b n"]:
    """The captions, a share of them with "toy" in place of the class noun."""
    toy, *nouns = token_ids(["toy", *CLASS_NOUNS], network.make_tokenizer())
    replaced = torch.isin(tokens, torch.tensor(nouns)) & (torch.rand(len(tokens), 1) < share)
    return torch.where(replaced, toy, tokens)


def draw_latents(
    pictures: LatentPictures, num: int, unconditional: float, generic: float
) -> tuple[Float[Tensor, "b c hz wz"], Int[Tensor, "b n"]]:
    """Random pictures or their mirror images, each with a caption drawn anew.

    Args:
        unconditional: Share of the captions that are empty.
        generic: Share of the captions with "toy" in place of the class noun.

    Returns:
        Latents, and the captions' token ids.
    """
    index, mirror = torch.randint(len(pictures.scenes), (num,)), torch.rand(num) < 0.5
    rng = np.random.default_rng(int(torch.randint(2**62, ())))
    texts = []
    for which, is_mirrored in zip(index.tolist(), mirror.tolist(), strict=True):
        scene = pictures.scenes[which]
        texts.append(draw_caption(rng, scene.traits, mirrored(scene.shot) if is_mirrored else scene.shot))
    tokenizer = network.make_tokenizer()
    tokens, empty = (
        tokenizer(said, padding="max_length", truncation=True, return_tensors="pt").input_ids for said in (texts, [""])
    )
    tokens = drop_captions(say_toy(tokens, generic), empty[0], unconditional)
    return pictures.z[mirror.long(), index].float(), tokens
