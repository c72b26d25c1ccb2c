"""DeepFloyd IF's words, in the layout of its repository: a SentencePiece model and no ready-made tokenizer."""

import json
import shutil
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from tiny_pipelines import tiny_if_folder

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.source import read_part
from db3d_nerfstudio.guides.unet.deepfloyd import DeepFloydGuideConfig

ROOT = Path(__file__).parents[3]
LINES = ["a photo of a sks dog, front view", "a photo of a dog, side view", "the quick brown fox jumps over the dog"]


def spiece_folder(path: Path) -> Path:
    """A tiny IF whose tokenizer's folder is laid out like T5's."""
    import sentencepiece

    folder = tiny_if_folder(path) / "tokenizer"
    shutil.rmtree(folder)
    folder.mkdir()
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    trainer = sentencepiece.SentencePieceTrainer
    trainer.train(sentence_iterator=iter(LINES * 50), model_prefix=folder / "spiece", vocab_size=40, **ids)
    words = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    extra = [f"<extra_id_{i}>" for i in range(100)]
    settings = {"additional_special_tokens": extra, **words}
    (folder / "special_tokens_map.json").write_text(json.dumps(settings))
    settings |= {"extra_ids": 100, "model_max_length": 512, "tokenizer_class": "T5Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


def test_words_are_those_of_the_sentencepiece_model(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason='not installed: pip install ".[if]"')
    guide = DeepFloydGuideConfig(model=str(spiece_folder(tmp_path)), variant=None).setup()
    words = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer" / "spiece.model"))
    ids = guide.tokenizer(LINES[0], padding="max_length", max_length=77).input_ids
    expected = [*words.encode(LINES[0]), 1]
    assert ids == expected + [0] * (77 - len(expected))
    assert guide.embed([LINES[0], ""]).shape[:2] == (2, 77)


def test_the_extra_installs_a_sentencepiece_that_nerfstudios_protobuf_can_read() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    specifier = next(r for r in map(Requirement, extras["if"]) if r.name == "sentencepiece").specifier
    assert specifier.contains("0.2.2") and not specifier.contains("0.2.3"), "0.2.3 wants protobuf 7"


@pytest.mark.parametrize(("installed", "words"), [(None, "is not installed"), (object(), "does not fit the protobuf")])
def test_a_tokenizer_that_cannot_be_read_is_one_line(installed, words, monkeypatch: pytest.MonkeyPatch) -> None:
    class Part:
        @staticmethod
        def from_pretrained(source: str, subfolder: str) -> None:
            raise ValueError("`tiktoken` is required to read a `tiktoken` file")

    monkeypatch.setattr("db3d_nerfstudio.guides.source.find_spec", lambda name: installed)
    with pytest.raises(UserError, match=rf"needs sentencepiece, which {words}.*\[if\]"):
        read_part(Part, "an/if", "tokenizer")
