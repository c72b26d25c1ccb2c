"""Encoders over tiny random models, compared with what transformers itself makes of the same input."""

import json

import pytest
import torch

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.evaluation.metrics.encoders import (
    CLIP_BACKBONES,
    clip_encoder,
    dino_encoder,
    judge_encoder,
    prepare,
)
from db3d_nerfstudio.toybox.judge import Judge


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    path = tmp_path_factory.mktemp("clip")
    letters = [chr(i) for i in range(33, 127)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(path / "vocab.json"), str(path / "merges.txt"), model_max_length=32).save_pretrained(path)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {"vocab_size": len(tokens), "max_position_embeddings": 32, "bos_token_id": 188, "eos_token_id": 189}
    config = CLIPConfig(text_config=text, vision_config=tower | {"image_size": 32, "patch_size": 8}, projection_dim=12)
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(path)
    return path


def test_clip_agrees_with_transformers(clip_folder):
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    sentences = ["a dog", "a photo of a cat"]
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    encoder = clip_encoder(str(clip_folder))
    processor = CLIPImageProcessor(do_resize=False, do_center_crop=False, do_rescale=False)
    pixels = processor(images=list(images), return_tensors="pt").pixel_values
    tokens = AutoTokenizer.from_pretrained(clip_folder)(sentences, padding=True, return_tensors="pt")
    wanted = CLIPModel.from_pretrained(clip_folder).eval()(pixel_values=pixels, **tokens)
    torch.testing.assert_close(encoder.images(images), wanted.image_embeds)
    torch.testing.assert_close(encoder.texts(sentences), wanted.text_embeds)


def test_dino_is_the_normalised_class_token(tmp_path):
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    images = torch.rand(2, 3, 32, 32)
    imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    processor = ViTImageProcessor(do_resize=False, do_rescale=False, **imagenet)
    pixels = processor(images=list(images), return_tensors="pt").pixel_values
    model = ViTModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    wanted = model(pixels).last_hidden_state[:, 0]
    encoder = dino_encoder(str(tmp_path))
    torch.testing.assert_close(encoder.images(images), wanted / wanted.norm(dim=-1, keepdim=True))
    assert encoder.texts is None


def test_dinov2_is_read_by_its_config_and_sees_pictures_of_its_own_size(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2}
    model = Dinov2Model(Dinov2Config(**size, image_size=266, patch_size=14)).eval()
    model.save_pretrained(tmp_path / "dinov2-tiny")
    images = torch.rand(2, 3, 224, 224)
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    wanted = model((images - mean) / std).last_hidden_state[:, 0]
    encoder = dino_encoder(str(tmp_path / "dinov2-tiny"))
    torch.testing.assert_close(encoder.images(images), wanted / wanted.norm(dim=-1, keepdim=True))
    assert encoder.name == "dino dinov2-tiny" and encoder.images(images[..., :64, :64]).shape == (2, 16)


def test_the_judge_is_an_encoder_of_pictures_and_captions():
    judge = Judge().eval()
    encoder = judge_encoder(judge)
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(encoder.images(images), judge.look(images).embedding)
    assert encoder.texts(["a photo of a dog"]).shape == (1, 128) and encoder.images(images[..., :32]).shape == (2, 128)


def test_pictures_are_cropped_to_their_middle_and_resized():
    wide = torch.zeros(1, 3, 4, 8)
    wide[..., 2:6] = 1.0
    assert torch.equal(prepare(wide, 4), torch.ones(1, 3, 4, 4))
    assert prepare(torch.full((1, 3, 5, 5), 0.25), 7).allclose(torch.full((1, 3, 7, 7), 0.25), atol=1e-5)


def test_a_missing_encoder_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match="neither a local folder"):
        clip_encoder(str(tmp_path / "nothing"))


def test_the_papers_backbones():
    assert list(CLIP_BACKBONES) == ["ViT-B/16", "ViT-B/32", "ViT-L/14"]
