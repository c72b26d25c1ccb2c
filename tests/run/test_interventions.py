"""What a person changes during a run holds from a step on, for this process and for the one that resumes."""

import pytest

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.run.interventions import Change, Interventions, add_change, guidance_at, read_changes, stage_ends


def test_changes_are_read_back_in_order(tmp_path):
    assert read_changes(tmp_path) == []
    changes = [Change(3, prompt="a"), Change(5, guidance_scale=2.5), Change(8, ends="initial")]
    for change in changes:
        add_change(tmp_path, change)
    assert read_changes(tmp_path) == changes
    assert [path.name for path in tmp_path.iterdir()] == ["interventions.json"], "a readable name, nothing left over"


def test_what_holds_at_a_step_is_what_was_said_last_before_it():
    changes = [Change(3, prompt="a"), Change(5, guidance_scale=2.5), Change(5, prompt="b", guidance_scale=1.0)]
    started = ("started with", 8.0)
    assert guidance_at(changes, 2, *started) == started
    assert guidance_at(changes, 3, *started) == guidance_at(changes, 4, *started) == ("a", 8.0)
    assert guidance_at(changes, 5, *started) == ("b", 1.0)


def test_what_cannot_be_never_reaches_the_disk(tmp_path):
    def check(prompt):
        raise UserError("unknown word")

    interventions = Interventions(tmp_path, "started with", 8.0)
    for request in ({"prompt": "a"}, {"guidance_scale": -1.0}, {"guidance_scale": float("nan")}):
        interventions.request(**request)
        interventions.apply(3, check, 4, "initial")
        assert interventions.answer.startswith("Not done: ")
    assert not (tmp_path / "interventions.json").exists() and interventions.prompts == []
    interventions.request(prompt="b")
    interventions.apply(3, lambda prompt: None, 4, "initial")
    assert interventions.prompts == Interventions(tmp_path, "started with", 8.0).prompts == ["b"]


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", '[{"stop": 3}]', "[3]", '{"step": 4}', '[{"prompt": "a sks dog"}]', '[{"step": "4"}]'),
        *('[{"step": 4, "prompt": 5}]', '[{"step": 4, "guidance_scale": NaN}]', '[{"step": 4, "ends": "middle"}]'),
    ],
)
def test_a_file_that_somebody_broke_is_named_with_the_fix(tmp_path, text):
    (tmp_path / "interventions.json").write_text(text)
    with pytest.raises(UserError, match="interventions.json cannot be read .*delete it"):
        read_changes(tmp_path)


def test_early_ends_of_phases():
    assert stage_ends([Change(3, prompt="a")]) == {}
    assert stage_ends([Change(8, ends="initial"), Change(12, ends="final")]) == {"initial": 8, "final": 12}
