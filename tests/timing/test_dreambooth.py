"""The benchmark's two loops do train, and its options do what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import tiny_toybox_folder

from db3d_nerfstudio.photos import photo_paths
from db3d_nerfstudio.timing import dreambooth as benchmark_dreambooth
from db3d_nerfstudio.timing.dreambooth import BenchmarkConfig
from db3d_nerfstudio.toybox.guide import ToyboxGuide, ToyboxGuideConfig


def test_both_loops_train_the_same_model(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_toybox_folder(tmp_path)
    made: list[tuple[ToyboxGuide, torch.Tensor]] = []

    def tiny_guide(tuning: str) -> ToyboxGuideConfig:
        config = ToyboxGuideConfig(model=model, tuning=tuning)

        class Remembering:
            def setup(self, device: str) -> ToyboxGuide:
                guide = config.setup(device=device)
                made.append((guide, torch.cat([p.detach().flatten().clone() for p in guide.parameters()])))
                return guide

        return Remembering()

    monkeypatch.setattr(benchmark_dreambooth, "ToyboxGuideConfig", tiny_guide)
    monkeypatch.setattr(benchmark_dreambooth, "INSTANCE", "a photo of a sks dog")
    monkeypatch.setattr(benchmark_dreambooth, "CLASS", "a photo of a dog")
    threads = torch.get_num_threads()
    benchmark_dreambooth.main(BenchmarkConfig(data=photos, tuning="lora", steps=2, device="cpu", threads=threads))
    script, ours = (torch.cat([p.detach().flatten() for p in guide.parameters()]) - old for guide, old in made)
    assert torch.equal(made[0][1], made[1][1])
    assert script.abs().max() > 0 and ours.abs().max() > 0
    assert "ratio" in capsys.readouterr().out


def test_copies_of_photos_have_the_wanted_size(photos: Path, tmp_path: Path) -> None:
    copies = benchmark_dreambooth._copies(photos, tmp_path / "copies", 50)
    assert {path.suffix for path in photo_paths(copies)} == {".jpg"}
    for path in photo_paths(copies):
        with Image.open(path) as image:
            assert image.size == (50, 50)
