"""The report is made of what the run folder has, whether the run is done or not."""

import json
import re

import pytest
import torch
from nerfstudio.configs.base_config import MachineConfig
from PIL import Image

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.guides.base import DiffusionGuideConfig
from db3d_nerfstudio.nerf.model import DreamBooth3DModelConfig
from db3d_nerfstudio.results.report import ReportConfig, main, write_report
from db3d_nerfstudio.run.interventions import Change, add_change
from db3d_nerfstudio.run.manifest import Manifest, describe, read_manifest
from db3d_nerfstudio.run.progress import RunProgress
from db3d_nerfstudio.run.record import LossLog, read_losses
from db3d_nerfstudio.training.pipeline import DreamBooth3DPipelineConfig
from db3d_nerfstudio.training.tasks import contents, run_tasks
from db3d_nerfstudio.training.trainer import DreamBooth3DTrainerConfig


@pytest.fixture
def config(photos, tmp_path):
    config = DreamBooth3DTrainerConfig(
        method_name="m",
        machine=MachineConfig(device_type="cpu"),
        output_dir=tmp_path / "out",
        timestamp="run",
        pipeline=DreamBooth3DPipelineConfig(model=DreamBooth3DModelConfig(guide=DiffusionGuideConfig())),
    )
    config.pipeline.datamanager.data = photos
    config.pipeline.model.prompt = "a photo of a <sks> robot"
    config.pipeline.phases.identifier = "<sks>"
    config.set_timestamp()
    return config


@pytest.fixture
def run(config):
    return config.run_folder()


@pytest.fixture
def manifest(config, run):
    config.pipeline.phases.posed_photos.share = 0.5
    return Manifest(run, describe(config, contents(config.pipeline.phases)))


def page_of(run):
    write_report(run)
    return (run / "report.html").read_text("utf8")


def test_a_run_that_has_just_begun(run, manifest):
    page = page_of(run)
    assert "a photo of a &lt;sks&gt; robot" in page and "not finished" in page
    assert len(re.findall('<img src="data:image/webp', page)) == 4, "the photos; there is nothing else yet"
    assert page.count("Not made yet.") == 5 and "Nothing has been trained yet." in page


def test_everything_that_has_been_made_is_in_it_and_no_other_file_is_needed(config, run, manifest):
    progress = RunProgress(run_tasks(config.pipeline.phases, 3))
    progress.listeners.append(manifest)
    with progress.during("DreamBooth partial") as update:
        update(150, 0.5)
    manifest.finish()
    made = ("class_images/0000.png", "dreambooth/partial/samples.png", "pseudo_views/contact_sheet.png")
    made = (*made, "posed_photos/final/contact_sheet.png")
    for file in (*made, "turntables/initial-nerf.webp"):
        (run / file).parent.mkdir(parents=True)
        Image.new("RGB", (96, 96), "red").save(run / file)
    (run / "dreambooth" / "partial" / "losses.json").write_text(json.dumps([0.5, 0.4, 0.3]))
    log = LossLog(run, total_steps=2)
    log.add(0, {"sds_loss": torch.tensor(1.0)})
    add_change(run, Change(7, prompt="a photo of a <sks> robot on the moon"))
    page = page_of(run)
    assert page.count('<img src="data:image/webp') == 4 + 5
    assert "initial nerf</figcaption>" in page and "D_partial: the guide after 150 iterations" in page
    assert "DreamBooth partial" in page and "150 of 150" in page and "NeRF: sds_loss" in page and "<svg" in page
    assert "from step 7: prompt a photo of a &lt;sks&gt; robot on the moon" in page
    assert f"ns-viewer --load-config {run / 'config.yml'}" in page and "finished" in page
    assert "pipeline.model.sds.guidance_scale" in page and "torch" in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page), "self-contained"
    assert not list(run.glob("*.tmp"))


def test_photos_that_are_gone_or_broken_are_named(run, manifest, photos):
    (photos / "00.png").unlink()
    (photos / "02.png").write_bytes(b"cut off")
    (run / "class_images").mkdir()
    (run / "class_images" / "0000.png").write_bytes(b"cut off")
    page = page_of(run)
    assert f"{photos} (gone or unreadable since: 00.png, 02.png)" in page
    assert "01.png</figcaption>" in page and "02.png</figcaption>" not in page


def test_a_baseline_has_fewer_sections_and_no_partial_guide(config, run):
    config.pipeline.phases.final.steps = 0
    Manifest(run, describe(config, contents(config.pipeline.phases)))
    page = page_of(run)
    assert page.count("Not made yet.") == 3 and "Pseudo views" not in page
    assert "D_full: the guide after 800 iterations" in page and "D_partial" not in page
    config.pipeline.phases.full_steps = 0
    Manifest(run, describe(config, contents(config.pipeline.phases)))
    assert "fine-tuned" not in page_of(run) and "NeRFs" in page_of(run)


def test_reports_load_no_model(run, manifest, monkeypatch):
    (run / "nerfstudio_models").mkdir()
    (run / "nerfstudio_models" / "step-000000007.ckpt").write_bytes(b"not to be opened")
    monkeypatch.setattr(torch, "load", lambda *args, **options: pytest.fail("a report only reads files"))
    assert f"db3d turntable {run} films the newest checkpoint" in page_of(run)


def test_a_folder_that_is_no_run_is_told_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="is not a run"):
        main(ReportConfig(run=tmp_path))


def test_a_run_on_a_disk_that_cannot_be_written_to_is_named(run, manifest):
    (run / "report.html.tmp").mkdir()  # The tests' user may write everywhere else.
    with pytest.raises(UserError, match=f"^cannot write {run}/report.html .*: copy the run to another disk"):
        write_report(run)


def test_the_manifest_tells_inputs_settings_and_versions(config, run, manifest, photos):
    written = read_manifest(run)
    assert [photo["file"] for photo in written["inputs"]["photos"]] == ["00.png", "01.png", "02.png", "03.png"]
    assert len({photo["sha256"] for photo in written["inputs"]["photos"]}) == 4
    assert written["settings"]["pipeline"]["model"]["sds"]["guidance_scale"] == config.pipeline.model.sds.guidance_scale
    assert written["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert written["seed"] == config.machine.seed and written["state"] == "running"


def test_times_add_up_over_processes_and_only_what_was_done_counts(config, run, manifest):
    now = [0.0]
    for start in range(2):  # The second process does the killed task again, and finds the class images.
        progress = RunProgress(run_tasks(config.pipeline.phases, 3), clock=lambda: now[0])
        progress.listeners.append(Manifest(run, describe(config, contents(config.pipeline.phases))))
        with progress.during("Class images") as update:
            if start == 0:
                now[0] += 5
                update(32)
        progress.begin("DreamBooth partial")
        now[0] += 20
        progress.update(100)
        progress.end()
    tasks = read_manifest(run)["tasks"]
    assert tasks["Class images"]["seconds"] == 5 and tasks["DreamBooth partial"]["seconds"] == 40
    assert tasks["DreamBooth partial"]["peak_memory_mb"] > 100
    assert len(read_manifest(run)["started"]) == 3


def test_losses_are_means_of_a_few_steps_and_those_trained_again_count_once(tmp_path):
    log = LossLog(tmp_path, total_steps=1000)
    totals = [log.add(step, {"a": torch.tensor(float(step)), "b": torch.tensor(1.0)}) for step in range(4)]
    assert totals == [None, 1.5, None, 3.5]
    LossLog(tmp_path, total_steps=1000).add(3, {"a": torch.tensor(7.0)})
    with (tmp_path / "losses.jsonl").open("a") as file:
        file.write('{"step": 5, "a"')
    assert read_losses(tmp_path) == {"a": [(1, 0.5), (3, 7.0)], "b": [(1, 1.0)]}
