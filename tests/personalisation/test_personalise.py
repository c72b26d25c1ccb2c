"""The commands `db3d dreambooth`, `db3d sample` and `db3d tokens`, on a tiny toybox and a tiny Stable Diffusion."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import tiny_stable_diffusion_folder, tiny_toybox_folder

from db3d_nerfstudio import cli
from db3d_nerfstudio.diffusion.dreambooth import DreamBoothConfig
from db3d_nerfstudio.diffusion.sampling import SamplingConfig
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.unet.stable_diffusion import StableDiffusionGuideConfig
from db3d_nerfstudio.images import labelled_sheet
from db3d_nerfstudio.personalisation import draw, personalise, tokens
from db3d_nerfstudio.personalisation.choice import GUIDES, guide_of
from db3d_nerfstudio.personalisation.personalise import PersonaliseConfig
from db3d_nerfstudio.personalisation.uses import USES, uses
from db3d_nerfstudio.toybox.captions import words
from db3d_nerfstudio.toybox.guide import ToyboxGuideConfig
from db3d_nerfstudio.words import parse_subject
from db3d_nerfstudio.workspace import Workspace

SUBJECT = "a photo of a sks dog"
QUICK = DreamBoothConfig(num_class_images=2, class_sampling=SamplingConfig(1), batch_size=1, learning_rate=1e-2)


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_toybox_folder(tmp_path_factory.mktemp("toybox"), words=[word for word in words() if word != ","])


@pytest.fixture
def config(toys: Path, photos: Path, tmp_path: Path) -> PersonaliseConfig:
    return PersonaliseConfig(
        data=photos,
        prompt=SUBJECT,
        max_train_steps=2,
        output=tmp_path / "out",
        uses=("view_synthesis", "accessories"),
        num=2,
        sampling=SamplingConfig(1),
        dreambooth=QUICK,
        guide=ToyboxGuideConfig(model=toys),
        device="cpu",
    )


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_dreambooth_is_made_once_and_goes_on_where_it_was_stopped(
    config: PersonaliseConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    personalise.main(config)
    said = capsys.readouterr().out
    made = files(config.output)
    assert {"personalised/guide.json", "personalised/unet/diffusion_pytorch_model.safetensors"} <= made.keys()
    assert {"class_images/0001.png", "sheets/view_synthesis/sheet.png", "sheets/accessories/02-1.png"} <= made.keys()
    assert f"db3d sample --personalised {config.output / 'personalised'}" in said and "the same when loaded" in said

    (config.output / "sheets" / "accessories").rename(config.output / "gone")  # As if killed before it was made.
    personalise.main(config)
    again = files(config.output)
    assert {path for path in made if made[path] != again.get(path)} == {
        path for path in made if path.startswith("sheets/accessories")
    }
    for name in ("00-0.png", "02-1.png"):  # The same images as before.
        old, new = (Image.open(config.output / folder / name) for folder in ("gone", "sheets/accessories"))
        assert list(old.getdata()) == list(new.getdata())
    with pytest.raises(UserError, match="max_train_steps: 2 -> 3.*give another --output"):
        personalise.main(replace(config, max_train_steps=3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, '--prompt "a photo of a sks robot"'),
        ({"prompt": "a photo of a dog"}, "identifier"),
        ({"prompt": "a photo of a sks dragon"}, 'the word "dragon"'),
        ({"data": Path("/nowhere")}, "3 to 6 photos"),
        ({"dreambooth": replace(QUICK, masked_loss=True)}, "masked_loss off"),
        ({"dreambooth": replace(QUICK, view_words="file_names")}, "view_words to guess or none"),
    ],
)
def test_mistakes_are_found_before_the_fine_tuning(config: PersonaliseConfig, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        personalise.main(replace(config, max_train_steps=10**9, **change))


def test_textual_inversion_names_the_subject_by_its_new_word(config: PersonaliseConfig) -> None:
    guide = replace(config.guide, tuning="textual_inversion", new_token_like="dog")
    personalise.main(replace(config, guide=guide, uses=("view_synthesis",)))
    assert (config.output / "personalised" / "learned_embeds.safetensors").exists()
    assert not (config.output / "class_images").exists()  # Nothing can be forgotten.
    assert '"a photo of a <sks> dog, front view"' in (config.output / "sheets/view_synthesis/recipe.json").read_text()


def test_stable_diffusion_is_personalised_in_its_own_words(config: PersonaliseConfig, tmp_path: Path) -> None:
    guide = StableDiffusionGuideConfig(model=str(tiny_stable_diffusion_folder(tmp_path / "sd")), tuning="lora")
    dreambooth = replace(QUICK, prior_loss_weight=0.0)
    personalise.main(replace(config, guide=guide, dreambooth=dreambooth, uses=("art_rendition",), num=1))
    assert (config.output / "personalised" / "pytorch_lora_weights.safetensors").exists()
    assert "a painting of a sks dog in the style of" in (config.output / "sheets/art_rendition/recipe.json").read_text()


def test_sample_takes_the_guide_from_the_personalised_folder(config: PersonaliseConfig, tmp_path: Path) -> None:
    guide = replace(config.guide, tuning="lora", lora_rank=2, lora_targets=("to_q", "to_k"))
    personalise.main(replace(config, guide=guide, uses=()))
    folder = config.output / "personalised"
    assert guide_of(folder, StableDiffusionGuideConfig()) == guide
    assert guide_of(folder, replace(config.guide, dtype="bfloat16")) == replace(guide, dtype="bfloat16")
    assert guide_of(None, config.guide) is config.guide

    images = {}
    for name, personalised in (("base", None), ("mine", folder), ("again", folder)):
        output = tmp_path / name
        options = {"num": 5, "sampling": SamplingConfig(1), "output": output, "guide": config.guide, "device": "cpu"}
        draw.main(draw.SampleConfig(SUBJECT, personalised, **options))
        images[name] = [list(Image.open(path).getdata()) for path in sorted(output.glob("0*.png"))]
        assert (output / "sheet.png").exists() and len(images[name]) == 5
    assert images["mine"] == images["again"] != images["base"]
    with pytest.raises(UserError, match="db3d dreambooth"):
        guide_of(tmp_path / "nothing", config.guide)


def test_tokens_of_the_toybox_are_whole_words(config: PersonaliseConfig, tmp_path: Path, capsys) -> None:
    options = {
        "output": tmp_path / "t",
        "num": 1,
        "sampling": SamplingConfig(1),
        "guide": config.guide,
        "device": "cpu",
    }
    tokens.main(tokens.TokensConfig("olis", "dog", **options))
    said = capsys.readouterr().out
    assert '"olis" is one token' in said and (tmp_path / "t" / "olis-dog.png").exists()
    with pytest.raises(UserError, match='the word "xxy5syt00"'):
        tokens.main(tokens.TokensConfig("xxy5syt00", "dog", **options))


def test_word_in_pieces_is_no_good_identifier(tmp_path: Path) -> None:
    """The tiny tokenizer knows letters only."""
    model = tiny_stable_diffusion_folder(tmp_path / "sd")
    table = tokens.look_up(StableDiffusionGuideConfig(model=str(model)).setup(), ["sks", "q", "red"], "dog", seed=0)
    assert table[0].pieces == ("s", "k", "s</w>") and len(table[0].ids) == 3
    assert (
        tokens.verdict(table)
        == '"sks" is split into 3 tokens, whose meanings it has to unlearn. These are one token: q.'
    )


def test_word_with_a_meaning_is_no_good_identifier() -> None:
    rare, named, red = (tokens.Word(word, (word,), (0,), m) for word, m in (("zwx", 0.1), ("sks", 0.9), ("red", 0.8)))
    assert 'means as much as "red" to this model. These mean less: zwx.' in tokens.verdict([named, rare, red])
    assert "a good identifier" in tokens.verdict([rare, named, red])


def test_meaning_is_zero_for_what_changes_nothing(config: PersonaliseConfig) -> None:
    (same,) = tokens._changes(config.guide.setup(), "a photo of a dog", ["a photo of a dog"], seed=0)
    assert same == 0


@pytest.mark.parametrize("toys", [True, False])
def test_uses_are_those_of_the_paper_and_name_the_subject(toys: bool) -> None:
    made = uses(parse_subject(SUBJECT), toys)
    assert tuple(use.name for use in made) == USES
    assert all("sks dog" in prompt for use in made for prompt in use.prompts)
    if toys:
        known = set(words())
        spoken = {word for use in made for prompt in use.prompts for word in prompt.replace(",", " ").split()}
        assert spoken <= known


def test_sheet_shows_every_image_in_its_place() -> None:
    colours = torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4)
    sheet = labelled_sheet("title", [("first", colours), ("second", colours[:1])], side=20)
    pixels = [sheet.getpixel((x, y)) for x in range(sheet.width) for y in range(sheet.height)]
    assert [pixels.count(colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))] == [800, 400, 400]
    taller = labelled_sheet("title " * 20, [("first", colours), ("second", colours[:1])], side=20)
    assert taller.height > sheet.height


def test_command_line_chooses_the_guide(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(draw, "main", seen.append)
    cli.main(["sample", "--prompt", "a dog"])
    cli.main(["sample", "--prompt", "a dog", "stable-diffusion", "--guide.model", "my/model", "--guide.tuning", "lora"])
    assert type(seen[0].guide) is ToyboxGuideConfig
    assert seen[1].guide == StableDiffusionGuideConfig(model="my/model", tuning="lora")
    assert {"toybox", "stable-diffusion"} <= GUIDES.keys()
    assert "guide" == fields(PersonaliseConfig)[-1].name  # tyro wants a subcommand's options last.


def test_a_fine_tune_without_its_weights_says_why(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    folder = workspace.once("full", {}, lambda path: (path / "guide.json").write_text("{}"))
    workspace.release("full")
    with pytest.raises(UserError, match="keep-full False.: give --personalised another"):
        guide_of(folder, ToyboxGuideConfig())


def test_a_folder_without_a_fine_tune_names_those_below_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a fine-tuned guide: give the folder that `db3d dreambooth` printed, or"):
        guide_of(tmp_path, ToyboxGuideConfig())
    for name in ("full", "partial"):
        (tmp_path / "dreambooth" / name).mkdir(parents=True)
        (tmp_path / "dreambooth" / name / "guide.json").touch()
    with pytest.raises(UserError, match="give .*/dreambooth/full, .*/dreambooth/partial, or a LoRA"):
        guide_of(tmp_path, ToyboxGuideConfig())
