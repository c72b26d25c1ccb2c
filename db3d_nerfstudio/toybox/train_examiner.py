"""Train the examiner: `python -m db3d_nerfstudio.toybox.train_examiner`. Its toys are the judge's, not the guide's."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import cross_entropy

from db3d_nerfstudio.toybox.dataset import DatasetConfig, load_images, load_scenes, make_dataset
from db3d_nerfstudio.toybox.examiner import HEADS, Examiner, label, load_examiner
from db3d_nerfstudio.toybox.train_judge import FIRST_HELD_OUT_SEED, FIRST_JUDGE_SEED

NOTHING_WEIGHT = 0.25
"""Weight in the loss of pictures without a pattern, without an accessory: there are four times as many."""


@dataclass
class TrainExaminerConfig:
    """The training recipe of the examiner."""

    output: Path = Path("outputs/toybox/examiner")
    """Folder for model.safetensors."""
    data: DatasetConfig = field(default_factory=lambda: DatasetConfig(num_subjects=4000, first_seed=FIRST_JUDGE_SEED))
    """The pictures."""
    held_out: DatasetConfig = field(
        default_factory=lambda: DatasetConfig(num_subjects=250, first_seed=FIRST_HELD_OUT_SEED)
    )
    """Pictures of toys never seen, which the examiner is measured on."""
    start_from: Path | None = None
    """File of a trained examiner to go on from; unset, the judge's image tower."""
    num_images: int = 200_000
    """Images seen in all, repeats included."""
    batch_size: int = 64
    """Images a step."""
    learning_rate: float = 2e-3
    """Peak of AdamW's rate in one cycle."""
    seed: int = 0
    """Of the heads' initial weights and of the order of the images."""


def load(config: DatasetConfig) -> tuple[UInt8[Tensor, "n 3 h w"], Int[Tensor, "n k"]]:
    """Bytes of the images, and the labels of the heads."""
    paths = make_dataset(config)
    labels = torch.tensor([label(scene) for scene in load_scenes(paths)])
    return torch.from_numpy(load_images(paths)).permute(0, 3, 1, 2), labels


def mirror(
    rgb: Float[Tensor, "b 3 h w"], labels: Int[Tensor, "b k"], chosen: Bool[Tensor, " b"]
) -> tuple[Float[Tensor, "b 3 h w"], Int[Tensor, "b k"]]:
    """The chosen images mirrored, which gives those that show a hand the other one."""
    rgb = torch.where(chosen[:, None, None, None], rgb.flip(-1), rgb)
    hand = torch.where(chosen & (labels[:, 0] >= 0), 1 - labels[:, 0], labels[:, 0])
    return rgb, torch.cat([hand[:, None], labels[:, 1:]], 1)


def loss(logits: dict[str, Float[Tensor, "b _"]], labels: Int[Tensor, "b k"]) -> Float[Tensor, ""]:
    """Cross entropies of the heads; labels of -1 do not count, and those that there is nothing count less."""
    total = labels.new_zeros((), dtype=torch.float32)
    for index, (name, known) in enumerate(HEADS.items()):
        weight = torch.tensor([NOTHING_WEIGHT if value is None else 1.0 for value in known])
        total = total + cross_entropy(logits[name], labels[:, index], weight, ignore_index=-1)
    return total


@torch.no_grad()
def accuracy(examiner: Examiner, images: UInt8[Tensor, "n 3 h w"], labels: Int[Tensor, "n k"]) -> dict[str, float]:
    """Share of images that each head names right; of patterns and accessories only where there is one."""
    opinions = [examiner.look(part.float() / 255) for part in images.split(100)]
    result = {}
    for index, name in enumerate(HEADS):
        said, truth = torch.cat([opinion[name] for opinion in opinions]).argmax(-1), labels[:, index]
        asked = truth >= (0 if name == "hand" else 1)
        result[name] = float((said == truth)[asked].float().mean())
    return result


def main(config: TrainExaminerConfig) -> None:
    """Photograph, train, and report accuracy on toys never seen."""
    from rich.progress import track
    from safetensors.torch import save_file

    torch.manual_seed(config.seed)
    images, labels = load(config.data)
    examiner = Examiner() if config.start_from is None else load_examiner(config.start_from).requires_grad_(True)
    examiner.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(examiner.parameters(), lr=config.learning_rate, weight_decay=0.05)
    steps = config.num_images // config.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=steps, pct_start=0.1)
    for _ in track(range(steps), "Training the examiner"):
        index = torch.randint(len(images), (config.batch_size,))
        chosen = torch.rand(config.batch_size) < 0.5
        rgb, truth = mirror(images[index].float() / 255, labels[index], chosen)
        logits = examiner.look(rgb.contiguous(memory_format=torch.channels_last))
        optimizer.zero_grad()
        loss(logits, truth).backward()
        optimizer.step()
        schedule.step()
    config.output.mkdir(parents=True, exist_ok=True)
    examiner.eval().to(memory_format=torch.contiguous_format)  # safetensors writes no other.
    save_file(examiner.state_dict(), config.output / "model.safetensors")
    print({name: round(value, 4) for name, value in accuracy(examiner, *load(config.held_out)).items()})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(TrainExaminerConfig))
