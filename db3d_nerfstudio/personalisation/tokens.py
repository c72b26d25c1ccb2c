"""`db3d tokens`: is a word a good identifier, and what does the model draw for the class noun?

DreamBooth needs a rare token (2208.12242, section 3.2): a word that is split into letters has strong associations
with these, and a word with a meaning has to unlearn it first. "sks", the usual choice, is a rifle.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro

from db3d_nerfstudio.console import announce
from db3d_nerfstudio.diffusion.guidance import standard_noise
from db3d_nerfstudio.diffusion.sampling import SamplingConfig, draw
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.diffusers_guide import DiffusersGuide
from db3d_nerfstudio.images import labelled_sheet
from db3d_nerfstudio.paths import command, output_folder
from db3d_nerfstudio.personalisation.choice import GuideChoice
from db3d_nerfstudio.personalisation.draw import COLUMNS
from db3d_nerfstudio.ranges import Count, Natural
from db3d_nerfstudio.run.progress import RunProgress, Task, shown
from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig

CANDIDATES = ("sks", "olis", "ohwx", "zwx", "rtr", "qvb")
"""Words that others have found rare; which of them are, depends on the model."""
COMMON = ("red", "striped", "wearing")
"""Words that mean something to every model, to compare with."""
NOISES = (0.9, 0.7, 0.5, 0.3)
"""Fractions of the noise schedule at which meanings are compared: from layout to texture."""


@dataclass
class TokensConfig:
    """Check an identifier and a class noun against a model's vocabulary, and draw both."""

    identifier: str = "sks"
    """The word to check."""
    class_noun: str = "duck"
    """What kind of thing the subject is."""
    output: Path = Path("outputs/tokens")
    """Folder for the sheet."""
    num: Count = COLUMNS
    """Images per prompt on the sheet."""
    sampling: Annotated[SamplingConfig, tyro.conf.arg(name="")] = field(default_factory=SamplingConfig)
    """How images are drawn."""
    seed: Natural = 0
    """Seed of the images and of the noise that meanings are measured on."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Device to run on."""
    guide: GuideChoice = field(default_factory=ToyboxGuideConfig)
    """The text-to-image model."""


@dataclass(frozen=True)
class Word:
    """A word in a model's vocabulary."""

    word: str
    pieces: tuple[str, ...]
    """The tokens that it is split into."""
    ids: tuple[int, ...]
    """Their ids; in a vocabulary learned by merging, high ids are rare."""
    meaning: float
    """By how much the word changes the estimated noise of "a photo of a NOUN"; the noun itself changes it by 1."""


def main(config: TokensConfig) -> None:
    """Print the table and the verdict, and write the sheet."""
    output_folder(config.output)
    guide = config.guide.setup(device=config.device)
    identifier, noun = config.identifier, config.class_noun
    words = [identifier, *(word for word in (*CANDIDATES, *COMMON) if word != identifier and _is_known(guide, word))]
    table = look_up(guide, words, noun, config.seed)
    size = len(guide.tokenizer)
    announce(f"{'word':<14}{'meaning':>8}  tokens (of {size})")
    for entry in table:
        tokens = ", ".join(f"{piece} {number}" for piece, number in zip(entry.pieces, entry.ids, strict=True))
        announce(f"{entry.word:<14}{entry.meaning:>8.2f}  {tokens}")
    announce(verdict(table))
    announce(f'The class noun "{noun}" has the tokens {", ".join(pieces_of(guide, noun)[0])}.')
    announce(f"What the model draws for both: {_write_sheet(config, guide)}")
    prompt = f"a photo of a {identifier} {noun}"
    announce(f"Next: {command('db3d', 'dreambooth', '--data', 'FOLDER', '--prompt', prompt)}")


def look_up(guide: DiffusersGuide, words: list[str], class_noun: str, seed: int) -> list[Word]:
    """The entries of words, those that mean least first but for the first word, which stays in its place."""
    noun = f"a photo of a {class_noun}"
    meanings = _changes(guide, noun, [f"a photo of a {word} {class_noun}" for word in words], seed)
    table = [Word(word, *pieces_of(guide, word), meaning) for word, meaning in zip(words, meanings, strict=True)]
    return [table[0], *sorted(table[1:], key=lambda entry: entry.meaning)]


def pieces_of(guide: DiffusersGuide, word: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The tokens of a word, as text and as numbers."""
    ids = guide.tokenizer(word, add_special_tokens=False).input_ids
    return tuple(guide.tokenizer.convert_ids_to_tokens(ids)), tuple(ids)


def verdict(table: list[Word]) -> str:
    """The conclusion about the table's first word."""
    first, others = table[0], table[1:]
    rare = [entry.word for entry in others if len(entry.pieces) == 1 and entry.word not in COMMON][:3]
    if len(first.pieces) > 1:
        better = f" These are one token: {', '.join(rare)}." if rare else ""
        return f'"{first.word}" is split into {len(first.pieces)} tokens, whose meanings it has to unlearn.{better}'
    common = [entry for entry in others if entry.word in COMMON and entry.meaning <= first.meaning]
    if common:
        better = f" These mean less: {', '.join(rare)}." if rare else ""
        return f'"{first.word}" is one token, but means as much as "{common[0].word}" to this model.{better}'
    return f'"{first.word}" is one token and means little to this model: a good identifier.'


def _is_known(guide: DiffusersGuide, word: str) -> bool:
    try:
        guide.check_prompts([word])
    except UserError:
        return False
    return True


@torch.no_grad()
def _changes(guide: DiffusersGuide, reference: str, prompts: list[str], seed: int) -> list[float]:
    """Distance of each prompt's noise estimate from the reference's, in units of the reference's distance from ""'s."""
    noise = standard_noise((len(NOISES), *guide.z_shape), guide.device, torch.Generator().manual_seed(seed))
    t = torch.tensor([int(fraction * len(guide.alphas_cumprod)) for fraction in NOISES], device=guide.device)
    answers = [guide.predict_noise(noise, t, guide.embed([p] * len(t))) for p in ("", reference, *prompts)]
    unit = (answers[1] - answers[0]).norm()
    return [((answer - answers[1]).norm() / unit).item() for answer in answers[2:]]


def _write_sheet(config: TokensConfig, guide: DiffusersGuide) -> Path:
    prompts = [
        f"a photo of a {config.identifier} {config.class_noun}",
        f"a photo of a {config.class_noun}",
        f"a photo of a {config.identifier}",
    ]
    progress = RunProgress([Task("tokens", "The sheet", "images", len(prompts) * config.num, config.sampling.steps)])
    with shown(progress), progress.during("The sheet") as update:
        repeated = [prompt for prompt in prompts for _ in range(config.num)]
        images = draw(guide, repeated, config.sampling, config.seed, progress=update)
    sheet = config.output / f"{config.identifier}-{config.class_noun}.png".replace(" ", "_")
    rows = list(zip(prompts, images.split(config.num), strict=True))
    labelled_sheet(f"The base model on {config.identifier} and {config.class_noun}", rows).save(sheet)
    return sheet
