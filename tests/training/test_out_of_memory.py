"""Where memory ran out decides what to lower, and every option that is named exists and needs less."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from db3d_nerfstudio.diffusion.upscaler import UpscalerConfig
from db3d_nerfstudio.method_configs import dreambooth3d, dreambooth3d_if, dreambooth3d_sdxl
from db3d_nerfstudio.run.folder import settings
from db3d_nerfstudio.run.progress import Task
from db3d_nerfstudio.training import out_of_memory
from db3d_nerfstudio.training.out_of_memory import advice
from db3d_nerfstudio.training.tasks import run_tasks

PARSER = Path(__file__).parents[1] / "parse_commands.py"


@pytest.fixture
def config():
    config = copy.deepcopy(dreambooth3d.method.config)
    config.pipeline.model.guide.gradient_checkpointing = config.pipeline.model.guide.train_text_encoder = False
    return config


def task(config, name: str) -> Task:
    (found,) = (task for task in run_tasks(config.pipeline.phases, 20) if task.name == name)
    return found


def out() -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee")


def raised_in(primitive: str) -> torch.OutOfMemoryError:
    """The error as a guide's member of that name raises it."""

    def member() -> None:
        raise out()

    member.__code__ = member.__code__.replace(co_name=primitive)
    try:
        member()
    except torch.OutOfMemoryError as error:
        return error
    raise AssertionError


def halves(line: str) -> tuple[str, str]:
    """What the same command may add, and what a new run may change."""
    assert "\n" not in line
    same, _, other = line.partition("the same command continues this run.")
    return same, other


def test_fine_tuning_is_told_to_recompute_and_then_to_tune_less(config):
    same, other = halves(advice(out(), config, task(config, "DreamBooth full")))
    assert same.startswith("CUDA out of memory. Tried to allocate 2 GiB. It happened in: DreamBooth full.")
    assert "gradient-checkpointing True" in same and "batch-size" not in same
    assert "dreambooth.optimizer adamw8bit or --pipeline.phases.dreambooth.batch-size 1" in other
    assert "guide.tuning lora" in other and "resolution" not in other


def test_what_is_set_already_is_not_advised(config):
    guide, dreambooth = config.pipeline.model.guide, config.pipeline.phases.dreambooth
    guide.gradient_checkpointing, guide.tuning = True, "lora"
    dreambooth.batch_size, dreambooth.optimizer = 1, "adamw8bit"
    same, other = halves(advice(out(), config, task(config, "DreamBooth full")))
    assert "--" not in same + other and "device to itself: " in same


def test_pseudo_views_are_translated_fewer_at_a_time(config):
    same, other = halves(advice(out(), config, task(config, "Pseudo views")))
    assert "pseudo-views.chunk 1" in same and "text-encoder-memory offload" in same and "tuning lora" in other
    same, _ = halves(advice(out(), config, task(config, "Class images")))
    assert "chunk" not in same


def test_a_nerf_is_rendered_smaller(config):
    same, other = halves(advice(out(), config, task(config, "Final NeRF")))
    assert "gradient-checkpointing" in same and "chunk" not in same
    assert "random-cameras.resolution 0 64 or --pipeline.model.sampler.num-samples 128" in other
    assert "train-num-rays-per-batch 1024" in other
    config.pipeline.model.perceptual_loss_mult = 1.0
    assert "train-num-rays" not in advice(out(), config, task(config, "Final NeRF")), "pictures are taken whole"


def test_the_upscaler_is_tuned_with_less(config):
    config.pipeline.phases.pseudo_views.upscaler = UpscalerConfig(max_train_steps=3, tuning="full")
    same, other = halves(advice(out(), config, task(config, "Upscaler")))
    assert "pseudo-views.upscaler.gradient-checkpointing True" in same and "upscaler.tuning lora" in other


def test_the_member_of_the_guide_that_ran_out_comes_first(config):
    same, other = halves(advice(raised_in("decode"), config, task(config, "Pseudo views")))
    assert "Pseudo views, decoding pictures" in same and other.startswith(" With --pipeline.model.guide.vae-dtype")
    same, _ = halves(advice(raised_in("embed"), config, None))
    assert "loading the guide, reading prompts" in same and "text-encoder-memory offload" in same


@pytest.mark.parametrize("preset", [dreambooth3d, dreambooth3d_sdxl, dreambooth3d_if])
def test_the_same_command_with_what_it_may_add_is_the_same_run(config, preset):
    config = copy.deepcopy(preset.method.config)
    before = settings(config)
    guide, phases = config.pipeline.model.guide, config.pipeline.phases
    guide.gradient_checkpointing, guide.text_encoder_memory = not guide.gradient_checkpointing, "offload"
    phases.pseudo_views.chunk, config.pipeline.model.eval_num_rays_per_chunk = 1, 7
    assert settings(config) == before
    phases.dreambooth.batch_size = 1
    assert settings(config) != before


@pytest.mark.slow
def test_ns_train_has_every_option(config):
    groups = (*out_of_memory.TRANSLATION, *out_of_memory.TUNING, *out_of_memory.TEXT, *out_of_memory.NERF)
    flags = {out_of_memory._flag(*remedy) for remedy in groups}
    assert len(flags) > 10
    line = f'ns-train dreambooth3d --data photos --prompt "a sks dog" {" ".join(sorted(flags))}'
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(PARSER)], input=line, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout == "", done.stderr
