"""The user study: fair pairs, a page that gives no method away, and votes counted by hand."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from db3d_nerfstudio import cli
from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.evaluation.benchmark import user_study
from db3d_nerfstudio.evaluation.benchmark.cell import run_folder
from db3d_nerfstudio.evaluation.benchmark.user_study import QUESTIONS, UserStudyConfig, majority, make_pairs, vote


@pytest.fixture
def finished(tmp_path):
    """A benchmark's folder: eight subjects, two methods, one seed."""
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(photos / "0.png")
    lines = []
    for subject in range(8):
        for method in ("alpha", "beta"):
            record = {"subject": f"s{subject}", "prompt": "a <b>dog</b>", "method": method, "seed": 1}
            record |= {"cell": f"s{subject}/{method}", "photos": str(photos)}
            folder = run_folder(tmp_path / "cells" / record["cell"], record["method"]) / "evaluation"
            folder.mkdir(parents=True)
            shade = 20 * subject + 5 * (method == "beta")
            Image.fromarray(np.full((4, 4, 3), shade, np.uint8)).save(folder / "turntable.webp", lossless=True)
            lines.append(json.dumps(record) + "\n")
    (tmp_path / "results.jsonl").write_text("".join(lines))
    return tmp_path


def test_page_and_key(finished):
    cli.main(["user-study", "--benchmark", str(finished)])
    page = (finished / "user_study" / "study.html").read_text()
    key = json.loads((finished / "user_study" / "key.json").read_text())
    assert "alpha" not in page and "beta" not in page, "nobody must be able to tell"
    assert page.count("data:image/webp") == 16 and "http" not in page
    assert all(question in page for question in QUESTIONS.values())
    assert "a <b>dog" not in page, "prompts are escaped"
    assert key["study"] in page and len(key["pairs"]) == 8
    assert {side["left"] for side in key["pairs"].values()} == {"alpha", "beta"}, "sides are drawn"
    data = json.loads(re.search(r"const data = (\{.*\});", page)[1])
    first = data["pairs"][0]
    subject = key["pairs"][first["name"]]["subject"]
    assert {first["left"], first["right"]} < set(data["pictures"]) and first["left"] != first["right"]
    assert subject in {f"s{i}" for i in range(8)}


def test_pairs_share_all_but_the_method_and_depend_on_the_seed(finished):
    records = user_study.read_results(finished)
    pairs = make_pairs(records, (), 0)
    for pair in pairs:
        assert pair.left["subject"] == pair.right["subject"] and pair.left["method"] != pair.right["method"]
    assert pairs == make_pairs(records, ("alpha", "beta"), 0) and pairs != make_pairs(records, (), 1)
    with pytest.raises(UserError, match="nothing to compare"):
        make_pairs(records, ("alpha", "gamma"), 0)
    with pytest.raises(UserError, match="has no results"):
        user_study.read_results(finished / "photos")


@pytest.mark.parametrize(
    ("choices", "winner"),
    [
        (["left", "left", "right"], "left"),
        (["left", "right"], "tie"),
        (["none", "none", "left"], "tie"),
        (["none", "left", "left"], "left"),
        (["right"], "right"),
    ],
)
def test_majority_by_hand(choices, winner):
    assert majority(choices) == winner


def test_vote_by_hand():
    sides = {"subject": "s", "prompt": "p", "seed": 1}
    key = {"pairs": {"p0": {"left": "a", "right": "b", **sides}, "p1": {"left": "b", "right": "a", **sides}}}
    answers = [
        {"p0": {"subject": "left"}, "p1": {"subject": "right"}},  # a, a
        {"p0": {"subject": "left"}, "p1": {"subject": "left"}},  # a, b
        {"p0": {"subject": "right", "prompt": "none"}},  # b
    ]
    table = vote(key, answers)
    assert {row["question"]: row["votes"] for row in table} == {"subject": {"a": 1, "tie": 1}, "prompt": {"tie": 1}}
    assert [row["pairs"] for row in table if row["question"] == "subject"] == [2]
    assert "a 50%, b 0%, tie 50% of 2 pairs" in user_study.vote_table(table)


def test_answers_are_checked_and_a_participant_counts_once(finished, capsys):
    user_study.main(UserStudyConfig(finished))
    key = json.loads((finished / "user_study" / "key.json").read_text())

    def answer(file, participant, choose, study=key["study"]):
        answers = {name: {"subject": choose(sides)} for name, sides in key["pairs"].items()}
        path = finished / file
        path.write_text(json.dumps({"study": study, "participant": participant, "answers": answers}))
        return path

    def for_alpha(sides):
        return "left" if sides["left"] == "alpha" else "right"

    files = (
        answer("1.json", "p", lambda sides: "none"),
        answer("2.json", "p", for_alpha),
    )
    cli.main(["user-study", "--benchmark", str(finished), "--answers", *map(str, files)])
    assert "alpha 100%, beta 0%, tie 0% of 8 pairs" in capsys.readouterr().out
    assert json.loads((finished / "user_study" / "vote.json").read_text())[0]["votes"] == {"alpha": 8}
    with pytest.raises(UserError, match="another study"):
        user_study.read_answers([answer("3.json", "q", for_alpha, study="0")], key["study"])
    (finished / "4.json").write_text("[]")
    with pytest.raises(UserError, match="not a file of answers"):
        user_study.read_answers([finished / "4.json"], key["study"])
    with pytest.raises(UserError, match="without this file"):
        user_study.read_key(finished / "key.json")


@pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="no browser to look with: apt-get install chromium chromium-driver",
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_page_asks_and_keeps_answers(finished):
    """In a real browser: every question of every pair is answered "left", a page that is loaded again knows it."""
    from selenium import webdriver
    from selenium.webdriver.support.ui import WebDriverWait

    def knows_all_after_loading(browser: webdriver.Chrome) -> bool:
        browser.get(page)  # a browser writes storage to its disk some time after the page did
        return browser.execute_script("return Object.keys(saved.answers).length === data.pairs.length")

    user_study.main(UserStudyConfig(finished))
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(flag)
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))) as browser:
        page = (finished / "user_study" / "study.html").as_uri()
        browser.get(page)
        browser.execute_script("""
            for (let i = 0; i < data.pairs.length; i++) {
                for (const name of Object.keys(data.questions)) {
                    document.querySelector(`input[name=${name}][value=left]`).click();
                }
                element("next").click();
            }""")
        WebDriverWait(browser, 20).until(knows_all_after_loading)
        text = browser.execute_script("return document.body.innerText")
        saved = json.loads(browser.execute_script("return JSON.stringify(saved)"))
        shown = browser.execute_script(
            "return [...document.images].every(image => image.complete && image.naturalWidth)"
        )
        study = browser.execute_script("return data.study")
    assert "8 answered" in text and "That was all" in text and "a <b>dog</b>" in text and shown
    answers = finished / "answers.json"
    answers.write_text(json.dumps({"study": study, "participant": saved["participant"], "answers": saved["answers"]}))
    (read,) = user_study.read_answers([answers], study)
    assert len(read) == 8 and all(answer == dict.fromkeys(QUESTIONS, "left") for answer in read.values())
