"""The viewer in a real browser while a run goes through its stages."""

import io
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_toybox_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="no browser to look with: apt-get install chromium chromium-driver",
    ),
]
PATIENCE = 240
"""Seconds that anything may take before the test gives up; nothing is asserted of how long it takes."""
# Fine-tunings are paused by the test, NeRFs are ended by it: neither may be over before.
SMALL = """
    --pipeline.phases.initial.steps 100000 --pipeline.phases.final.steps 100000
    --pipeline.phases.partial-steps 300 --pipeline.phases.full-steps 300 --pipeline.phases.multiview-steps 2
    --pipeline.phases.dreambooth.num-class-images 2 --pipeline.phases.dreambooth.class-sampling.steps 2
    --pipeline.phases.pseudo-views.steps 4 --pipeline.datamanager.dataparser.num-views 4
    --pipeline.datamanager.dataparser.resolution 16 --pipeline.datamanager.random-cameras.resolution 0 8 0.4 16
    --pipeline.datamanager.train-num-rays-per-batch 64 --pipeline.model.field.resolutions 8 16
    --pipeline.model.background.color 1 1 1 --machine.device-type cpu --start-paused True --steps-per-save 100000
""".split()


def start_browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    flags = """
        --headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-component-update
        --use-angle=swiftshader --enable-unsafe-swiftshader --disable-dev-shm-usage --window-size=1200,900
    """
    for flag in flags.split():
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    browser.set_page_load_timeout(PATIENCE)
    browser.set_script_timeout(PATIENCE)
    return browser


class Page:
    """What a user sees and does in the viewer."""

    def __init__(self, browser, folder):
        self.browser, self.folder = browser, folder

    @property
    def text(self):
        return self.browser.execute_script("return document.body.innerText")

    def wait_for(self, condition, what):
        end = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > end:
                self.browser.save_screenshot(str(self.folder / "page.png"))
                pytest.fail(
                    f"waited in vain for {what}; {self.folder / 'page.png'} shows the page, which says:\n{self.text}"
                )
            time.sleep(0.1)

    def see(self, words):
        self.wait_for(lambda: words in self.text, words)

    def click(self, label):
        script = "return [...document.querySelectorAll('button')].find(b => b.innerText.includes(arguments[0]))"
        self.wait_for(lambda: self.browser.execute_script(script, label), label)
        self.browser.execute_script(f"({script.removeprefix('return ')}).click()", label)

    def render(self):
        """The middle of the scene, where the object is."""
        with Image.open(io.BytesIO(self.browser.get_screenshot_as_png())) as image:
            pixels = np.asarray(image.convert("RGB"))
        height, width = pixels.shape[:2]
        return pixels[height // 4 : -height // 4, width // 4 : width // 2]

    def see_render(self):
        """A picture has come from the NeRF, and it is not of one colour."""
        self.wait_for(lambda: "Resolution: 0x0px" not in self.text, "a render")
        self.wait_for(lambda: self.render().std() > 5, "a render with something in it")

    def pictures(self):
        script = "return [...document.images].filter(i => i.src.startsWith('data:') && i.naturalWidth).map(i => i.alt)"
        return self.browser.execute_script(script)


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def run(tmp_path, photos, port):
    tiny_toybox_folder(tmp_path / "guide")
    arguments = ["--data", str(photos), "--prompt", "a photo of a sks robot", *SMALL]
    arguments += ["--pipeline.model.guide.model", str(tmp_path / "guide"), "--output-dir", str(tmp_path / "out")]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [
                *(str(Path(sys.executable).with_name("ns-train")), "dreambooth3d-toybox", *arguments),
                *("--viewer.websocket-port", str(port)),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"},
            stdout=log,
            stderr=log,
        )
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def page(run, port, tmp_path):
    end = time.monotonic() + PATIENCE
    while not listening(port):
        assert run.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
        time.sleep(0.2)
    browser = start_browser()
    browser.get(f"http://127.0.0.1:{port}")
    yield Page(browser, tmp_path)
    browser.quit()


def listening(port):
    """The addresses of this machine at which something listens to a port, as Linux writes them."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {fields[1].split(":")[0] for fields in lines if fields[1].endswith(f":{port:04X}") and fields[3] == "0A"}


def test_every_stage_is_seen_in_the_browser(page, run, port, tmp_path):
    assert listening(port) == {"0100007F"}, "127.0.0.1 and nowhere else"
    page.see("DreamBooth3D")
    page.see_render()
    assert page.pictures() == ["photos"]
    page.click("Resume Training")

    for stage, name, sheets in [("1/3 initial", "partial", set()), ("2/3 pseudo_views", "full", {"partial"})]:
        page.see(f"DreamBooth {name}: ")
        page.click("Pause Training")
        assert f"Stage {stage}" in page.text
        page.see_render()
        assert sheets <= set(page.pictures())
        page.click("Resume Training")
        if name == "partial":
            page.see("Initial NeRF: ")
            page.see_render()
            page.click("End this stage now")

    page.see("Final NeRF: ")
    assert "Stage 3/3 final" in page.text
    page.see_render()
    assert {"photos", "multiview", "pseudo_views"} <= set(page.pictures())
    page.click("End this stage now")
    page.wait_for(lambda: run.poll() is not None, "the end of the run")
    assert run.returncode == 0, (tmp_path / "log").read_text()
    (report,) = (tmp_path / "out").glob("*/*/*/report.html")
    assert "end of the NeRF initial" in report.read_text()
