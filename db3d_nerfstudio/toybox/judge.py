"""The judge: a miniature CLIP with heads for class, main colour and view, trained on toys that the guide never saw.

It is for evaluation only: nothing is trained against it and no output is selected by it. `Judge.look` returns logits of
every class, colour and view, and an embedding that images and captions share (CLIP, Radford et al. 2021, arXiv
2103.00020).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from db3d_nerfstudio.toybox import network
from db3d_nerfstudio.toybox.subjects import CLASS_NOUNS
from db3d_nerfstudio.toybox.toys import PALETTE
from db3d_nerfstudio.words import VIEW_NAMES

SHIPPED_JUDGE = Path(__file__).parent / "weights" / "judge" / "model.safetensors"
EMBEDDING = 128
"""Width of the embedding that images and captions share."""
HEADS = {"class_noun": tuple(CLASS_NOUNS), "main_color": tuple(PALETTE), "view": VIEW_NAMES}
"""The classes of each head, in the order of the data set's labels."""


class ResidualBlock(nn.Module):
    """Two normalised convolutions beside a shortcut; halves the grid when `stride` is 2."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        return torch.relu(self.body(x) + self.shortcut(x))


@dataclass(frozen=True)
class Opinion:
    """The judge's output for a batch of images."""

    class_noun: Float[Tensor, "b c"]
    """Logits over `CLASS_NOUNS`."""
    main_color: Float[Tensor, "b p"]
    """Logits over `PALETTE`."""
    view: Float[Tensor, "b v"]
    """Logits over `VIEW_NAMES`."""
    embedding: Float[Tensor, "b d"]
    """Of length 1; its dot product with a caption's embedding is their similarity."""


class Judge(nn.Module):
    """Image tower, text tower, three heads."""

    def __init__(self):
        super().__init__()
        self.image_tower = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, 32, 3, 1, 1),
            ResidualBlock(32, 48, 2),
            ResidualBlock(48, 96, 2),
            ResidualBlock(96, 192, 2),
            nn.Flatten(),
            nn.Linear(192 * 16, 256),
            nn.ReLU(),
        )
        self.heads = nn.ModuleDict({name: nn.Linear(256, len(names)) for name, names in HEADS.items()})
        self.image_projection = nn.Linear(256, EMBEDDING)
        self.text_tower = network.make_text_encoder()
        self.text_projection = nn.Linear(network.TEXT_WIDTH, EMBEDDING)
        self.log_temperature = nn.Parameter(torch.tensor(2.3))
        self._tokenizer = network.make_tokenizer()

    def look(self, rgb: Float[Tensor, "b 3 64 64"]) -> Opinion:
        """Opinions of images in [0, 1]."""
        features = self.image_tower(rgb * 2 - 1)
        logits = {name: head(features) for name, head in self.heads.items()}
        return Opinion(**logits, embedding=normalize(self.image_projection(features), dim=-1))

    def read_tokens(self, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b d"]:
        """Embeddings of captions given as token ids."""
        return normalize(self.text_projection(self.text_tower(tokens).pooler_output), dim=-1)

    def read(self, captions: list[str]) -> Float[Tensor, "b d"]:
        """Embeddings of captions, of length 1."""
        tokens = self._tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return self.read_tokens(tokens)

    def loss(
        self, rgb: Float[Tensor, "b 3 64 64"], tokens: Int[Tensor, "b n"], labels: Int[Tensor, "b 3"]
    ) -> Float[Tensor, ""]:
        """Cross entropies of the heads (labels of -1 do not count) and of CLIP's pairing of images and captions."""
        opinion = self.look(rgb)
        loss = rgb.new_zeros(())
        for index, name in enumerate(HEADS):
            loss = loss + cross_entropy(getattr(opinion, name), labels[:, index], ignore_index=-1)
        likeness = self.log_temperature.exp() * opinion.embedding @ self.read_tokens(tokens).T
        pairs = torch.arange(len(rgb))
        return loss + (cross_entropy(likeness, pairs) + cross_entropy(likeness.T, pairs)) / 2


def load_judge(path: Path = SHIPPED_JUDGE) -> Judge:
    """The judge that ships with the package, in eval mode."""
    from safetensors.torch import load_file

    judge = Judge()
    judge.load_state_dict(load_file(path))
    return judge.eval().requires_grad_(False)
