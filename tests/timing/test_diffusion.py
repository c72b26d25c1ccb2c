import pytest

from db3d_nerfstudio.guides.shapes import SHAPES
from db3d_nerfstudio.timing import step as benchmark
from db3d_nerfstudio.timing.diffusion import time_stable_diffusion
from db3d_nerfstudio.timing.step import Benchmark

SMALL = {
    "unet": {
        "sample_size": 8,
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
    },
    "vae": {**SHAPES["sd15"]["vae"], "block_out_channels": (8,) * 4, "norm_num_groups": 4},
    "text_encoder": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1},
}


def test_every_kind_of_work_is_done_and_reported(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    for name in ("sds_loss", "dreambooth_loss", "translate"):
        work = getattr(__import__("db3d_nerfstudio.timing.diffusion", fromlist=[name]), name)
        monkeypatch.setattr(
            f"db3d_nerfstudio.timing.diffusion.{name}",
            lambda *args, name=name, work=work, **kwargs: calls.append(name) or work(*args, **kwargs),
        )
    time_stable_diffusion("cpu", SMALL)
    assert calls == ["sds_loss", "dreambooth_loss", "translate"]
    title, head, *rows = capsys.readouterr().out.splitlines()
    assert "million random weights in torch.float32, 64 pixels" in title and head.split()[-2:] == ["peak", "GiB"]
    assert len(rows) == 4 and all(float(row.split()[-1]) > 0 for row in rows)


def test_flag_of_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = []
    monkeypatch.setattr(benchmark, "time_stable_diffusion", devices.append)
    Benchmark(stable_diffusion=True, device="cpu").main()
    assert devices == ["cpu"]
