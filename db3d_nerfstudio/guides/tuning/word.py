"""Textual Inversion: a subject as the embedding of one new word (Gal et al. 2022, arXiv 2208.01618).

All weights stay as they were. The word is kept in the file that diffusers' `pipe.load_textual_inversion` reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import Parameter

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.kinds import read_header
from db3d_nerfstudio.guides.tuning.base import Tuning, check_saved

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDING_FILE = "learned_embeds.safetensors"


class WordTuning(Tuning):
    """Textual Inversion."""

    can_forget = False

    def __init__(self, text_encoder: PreTrainedModel, tokenizer: Any, word: str, like: str) -> None:
        self.modules, self._word = {"text_encoder": text_encoder}, word
        self._embedding = add_word(tokenizer, text_encoder, word, like)

    def save(self, path: Path) -> None:
        save_word(self._word, self._embedding, path)

    def load(self, path: Path | None) -> None:
        if path is not None:
            check_saved(path, [EMBEDDING_FILE])
        load_word(self._word, self._embedding, path)


class ExtendedEmbedding(nn.Module):
    """A table of token embeddings, and the trainable embedding of one more token."""

    def __init__(self, table: nn.Embedding, token: int, start: Float[Tensor, " d"]) -> None:
        super().__init__()
        self.table, self.token = table, token
        self.start = start.detach().clone()
        self.new = Parameter(self.start.clone())

    def forward(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        """The embeddings of tokens."""
        known = self.table(ids.clamp(max=self.table.num_embeddings - 1))
        return torch.where((ids == self.token)[..., None], self.new, known)


def add_word(
    tokenizer: PreTrainedTokenizerBase, text_encoder: PreTrainedModel, word: str, like: str
) -> ExtendedEmbedding:
    """Add a word to tokenizer and text encoder, with the embedding of `like` to start from."""
    if word in tokenizer.get_vocab():
        raise UserError(f'The model already has the token "{word}": choose another new_token, such as "<{word}>".')
    ids = tokenizer(like, add_special_tokens=False).input_ids
    if len(ids) != 1 or ids[0] == _unknown(tokenizer):
        is_what = f"is {len(ids)}" if len(ids) != 1 else "is not in the vocabulary"
        raise UserError(f'A new word starts from one token, but "{like}" {is_what}: choose another new_token_like.')
    tokenizer.add_tokens(word)
    table = cast(nn.Embedding, text_encoder.get_input_embeddings())
    token = cast(int, tokenizer.convert_tokens_to_ids(word))  # A list has been given for a list alone.
    extended = ExtendedEmbedding(table, token, table.weight[ids[0]])
    text_encoder.set_input_embeddings(extended)
    return extended


def _unknown(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token of unknown words; None if the tokenizer spells them out in letters."""
    unknown = cast(int | None, tokenizer.unk_token_id)
    return None if unknown == tokenizer.eos_token_id else unknown  # CLIP reuses EOS as UNK.


def save_word(word: str, embedding: ExtendedEmbedding, path: Path) -> None:
    """Write the new embedding into the folder `path`."""
    from safetensors.torch import save_file

    path.mkdir(parents=True, exist_ok=True)
    save_file({word: embedding.new.detach()[None].cpu()}, path / EMBEDDING_FILE, metadata={"format": "pt"})


@torch.no_grad()
def load_word(word: str, embedding: ExtendedEmbedding, path: Path | None) -> None:
    """Load the embedding in the folder `path`; None restores the initial one."""
    from safetensors.torch import load_file

    if path is None:
        embedding.new.copy_(embedding.start)
        return
    read_header(path / EMBEDDING_FILE)  # Raises for one that is damaged.
    saved = load_file(path / EMBEDDING_FILE)
    if word not in saved:
        raise UserError(f'{path} has the word "{next(iter(saved))}", not "{word}": set new_token to it.')
    value = saved[word].reshape(-1)
    if value.shape != embedding.new.shape:
        raise UserError(
            f'The word "{word}" in {path} has {len(value)} numbers, but the model needs {len(embedding.new)}: set the '
            "guide's model to the base model that the word was learned with."
        )
    embedding.new.copy_(value)
