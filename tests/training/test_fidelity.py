"""The arithmetic of the fidelity benchmark, on embeddings whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from benchmarks import fidelity_figures as fidelity
from benchmarks.subjects import Subject, drawn_subjects, folder_subjects, obedience_prompts, scenes


def towards(*directions: int, share: float = 1.0) -> np.ndarray:
    """Rows that point to unit directions of a space of four, the last of which is nobody's."""
    rows = np.full((len(directions), 4), 0.0)
    for row, direction in enumerate(directions):
        rows[row, direction] = share
        rows[row, 3] += (1 - share**2) ** 0.5
    return rows


@pytest.fixture
def subjects() -> list[Subject]:
    picture = Image.new("RGB", (8, 8))
    return [Subject(n, "ohwx", "man", [(picture, "")], [picture]) for n in ("a", "b", "c")]


def make(subjects, with_token, without_token, obeyed):
    tune = fidelity.Tune(subjects[0], 0, None, with_token, without_token, np.array(obeyed))
    before = fidelity.Before(
        {"a": towards(0, 0, share=0.2)}, {"a": towards(0, 0, share=0.2)}, {("a", 0): np.array([1.0, 0.5])}
    )
    centres = {name: towards(i)[0] for i, name in enumerate("abc")}
    return fidelity.measure(tune, before, centres)


def test_likeness_nearest_leak_and_obedience(subjects):
    row = make(subjects, towards(0, 1, share=1.0), towards(0, 0, share=0.3), [0.5, 0.5])
    assert row.likeness == pytest.approx(0.5) and row.base_likeness == pytest.approx(0.2)
    assert row.nearest == 0.5 and row.others == pytest.approx(0.25)
    figures = fidelity.figures_of([row, row])
    assert figures["leak"] == pytest.approx((0.3 - 0.2) / (0.5 - 0.2))
    assert figures["obedience_before"] == 0.75 and figures["obedience_lost"] == pytest.approx(0.25)


def test_intervals_hold_the_figure_and_shrink_to_it_when_tunes_agree(subjects):
    good = make(subjects, towards(0, 0), towards(0, 0, share=0.2), [1.0, 1.0])
    bad = make(subjects, towards(1, 1), towards(0, 0, share=0.2), [0.0, 0.0])
    low, high = fidelity.intervals([good, bad, good])["nearest_subject_accuracy"]
    assert low < 2 / 3 < high
    assert fidelity.intervals([good, good])["nearest_subject_accuracy"] == (1.0, 1.0)


def test_a_folder_of_subjects(tmp_path):
    for name, count in (("anna woman", 8), ("rex-dog", 4)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("RGB", (16, 16), (i, 0, 0)).save(tmp_path / name / f"{i}.png")
    (tmp_path / "rex-dog" / "0.txt").write_text("a photo of zwx dog in the snow")
    (tmp_path / "rex-dog" / "tune.yaml").write_text("{name: dog, token: zwx}")
    anna, rex = folder_subjects(tmp_path)
    assert (anna.class_name, anna.token, len(anna.training), len(anna.held_out)) == ("woman", "ohwx", 6, 2)
    assert (rex.called, len(rex.training), len(rex.held_out)) == ("zwx dog", 3, 1)
    assert rex.training[0][1] == "a photo of zwx dog in the snow"
    assert anna.training[0][1] == "a photo of ohwx woman"
    assert anna.held_out[0].getpixel((0, 0)) == (6, 0, 0)


def test_prompts_ask_for_what_the_classifier_knows():
    from tunes_dagster.tiny.world.captions import VOCABULARY

    (fern,) = drawn_subjects(["fern"])
    assert len(fern.training) == 8 and fern.plain_names == ["a man", "a person"]
    prompts = obedience_prompts(fern, 60, 0)
    assert prompts == obedience_prompts(fern, 60, 0) != obedience_prompts(fern, 60, 1)
    for asked in prompts:
        assert asked.text.format(fern.called).startswith("a photo of ohwx man")
        assert all(value in VOCABULARY[key] for key, value in asked.attributes.items())
    assert sum(len(asked.attributes) > 1 for asked in prompts) > 30
    assert len(set(scenes(12))) == 12 and len(scenes(24)) == 24
