"""Train the judge, on other toys than the guide's: `python -m db3d_nerfstudio.toybox.train_judge`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from db3d_nerfstudio.toybox import network
from db3d_nerfstudio.toybox.dataset import CAPTIONS_PER_IMAGE, DatasetConfig, Pictures, load_dataset, make_dataset
from db3d_nerfstudio.toybox.judge import HEADS, Judge
from db3d_nerfstudio.toybox.sides import token_ids

FIRST_JUDGE_SEED = 2_000_000
FIRST_HELD_OUT_SEED = 3_000_000
"""Toys that neither the guide nor the judge was trained on."""
SIDED_WEIGHT = 7.0
"""How many times as likely as another one a caption is drawn that names the left or the right."""


@dataclass
class TrainJudgeConfig:
    """The training recipe of the judge."""

    output: Path = Path("outputs/toybox/judge")
    """Folder for model.safetensors."""
    data: DatasetConfig = field(default_factory=lambda: DatasetConfig(num_subjects=8000, first_seed=FIRST_JUDGE_SEED))
    """The pictures."""
    num_images: int = 300_000
    """Number of images in all, repeats included."""
    batch_size: int = 64
    """Images per step."""
    learning_rate: float = 2e-3
    """Peak of AdamW's rate in one cycle."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the judge's activations in training (see `CourseConfig.dtype`)."""
    seed: int = 0
    """Seed of the initial weights and of the order of the images."""


def tokenize(pictures: Pictures) -> Int[Tensor, "n k w"]:
    """All captions of all images as token ids."""
    texts = [text for captions in pictures.captions for text in captions]
    ids = network.make_tokenizer()(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids.reshape(len(pictures.captions), CAPTIONS_PER_IMAGE, -1)


def names_side(tokens: Int[Tensor, "*b n"]) -> Bool[Tensor, "*b"]:
    """Whether captions contain "left" or "right"."""
    words = token_ids(["left", "right"], network.make_tokenizer())
    return torch.isin(tokens, torch.tensor(words)).any(-1)


def swap_sides(tokens: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
    """The captions with "left" for "right" and "right" for "left"."""
    left, right = token_ids(["left", "right"], network.make_tokenizer())
    return torch.where(tokens == left, right, torch.where(tokens == right, left, tokens))


def draw_batch(pictures: Pictures, tokens: Int[Tensor, "n k w"], batch_size: int):
    """Random images, half of them mirrored, each with one of its captions, in which left and right are then swapped.

    Returns:
        Images in [0, 1], token ids of the captions, and which images they are.
    """
    indices = torch.randint(len(tokens), (batch_size,))
    images = torch.from_numpy(pictures.images[indices.numpy()]).permute(0, 3, 1, 2).float() / 255
    mirrored = torch.rand(len(images)) < 0.5
    images[mirrored] = images[mirrored].flip(-1)
    captions = tokens[indices]
    weights = torch.where(names_side(captions), SIDED_WEIGHT, 1.0)
    chosen = captions[torch.arange(batch_size), torch.multinomial(weights, 1)[:, 0]]
    chosen[mirrored] = swap_sides(chosen[mirrored])
    return images, chosen, indices


@torch.no_grad()
def accuracy(judge: Judge, pictures: Pictures, batch_size: int = 256) -> dict[str, float]:
    """Share of images whose class, main colour and view the judge gets right; invisible ones do not count."""
    images = torch.from_numpy(pictures.images).permute(0, 3, 1, 2).float() / 255
    opinions = [judge.look(batch) for batch in images.split(batch_size)]
    result = {}
    for index, name in enumerate(HEADS):
        said = torch.cat([getattr(opinion, name) for opinion in opinions]).argmax(-1)
        truth = torch.from_numpy(pictures.labels[:, index])
        result[name] = float((said == truth)[truth >= 0].float().mean())
    return result


def main(config: TrainJudgeConfig) -> None:
    """Photograph, train, and report accuracy on toys never seen."""
    from rich.progress import track
    from safetensors.torch import save_file

    torch.manual_seed(config.seed)
    pictures = load_dataset(make_dataset(config.data))
    tokens, labels = tokenize(pictures), torch.from_numpy(pictures.labels)
    judge = Judge().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=config.learning_rate, weight_decay=0.05)
    steps = config.num_images // config.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=steps, pct_start=0.1)
    for _ in track(range(steps), "Training the judge"):
        images, captions, indices = draw_batch(pictures, tokens, config.batch_size)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.dtype == "bfloat16"):
            loss = judge.loss(images, captions, labels[indices])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    config.output.mkdir(parents=True, exist_ok=True)
    judge.to(memory_format=torch.contiguous_format)  # safetensors needs contiguous weights.
    save_file(judge.state_dict(), config.output / "model.safetensors")
    held_out = DatasetConfig(config.data.root, num_subjects=500, first_seed=FIRST_HELD_OUT_SEED)
    print({name: round(value, 4) for name, value in
           accuracy(judge.eval(), load_dataset(make_dataset(held_out))).items()})  # fmt: skip


if __name__ == "__main__":
    import tyro

    main(tyro.cli(TrainJudgeConfig))
