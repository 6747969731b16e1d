"""The drawn world: deterministic, truthful, and without the held-out subjects."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tunes_dagster.tiny.world import (
    FIDELITY,
    SUBJECTS,
    VOCABULARY,
    attributes,
    caption,
    cast,
    draw_subject,
    picture,
    random_shot,
    shot,
)
from tunes_dagster.tiny.world.names import RESERVED
from tunes_dagster.tiny.world.palette import COLORS
from tunes_dagster.tiny.world.scenes import PLAINS


def test_a_picture_depends_on_its_number_only():
    first, again, other = picture(11), picture(11), picture(12)
    assert first[0].tobytes() == again[0].tobytes()
    assert first[1:] == again[1:]
    assert first[0].tobytes() != other[0].tobytes()
    assert first[0].size == (128, 128)
    assert first[0].mode == "RGB"


def test_attributes_come_from_the_vocabulary():
    for number in range(300):
        found = attributes(shot(number)[0])
        assert all(value in VOCABULARY[key] for key, value in found.items())


def test_named_attributes_are_true_and_written_down():
    rng = random.Random(3)
    for _ in range(400):
        content = random_shot(rng)
        truth = attributes(content)
        text, asked = caption(content, rng)
        assert asked.items() <= truth.items()
        for key in ("hair", "fur", "color", "shirt", "collar", "hat", "eyewear", "beard"):
            if asked.get(key, "none") != "none":
                assert asked[key] in text, (key, text)


def test_plain_backgrounds_have_their_colour():
    checked = 0
    for number in range(200):
        image, found, _ = picture(number)
        if found["background"] in PLAINS:
            corner = np.asarray(image)[1, 1].astype(int)
            distances = {name: np.abs(corner - np.array(rgb)).sum() for name, rgb in COLORS.items()}
            assert min(distances, key=distances.get) == found["background"]
            checked += 1
    assert checked > 50


def test_pseudo_names_stand_for_one_look_and_leave_tokens_alone():
    looks = cast()
    assert len(looks) == 300
    assert not set(looks) & RESERVED
    assert not set(looks) & {subject.token for subject in SUBJECTS.values()}
    named = [shot(number) for number in range(600)]
    shares = [name for _, name in named if name]
    assert 0.14 < len(shares) / len(named) < 0.26
    assert all(content.look == looks[name] for content, name in named if name)


def test_held_out_subjects_never_occur_in_the_world():
    assert len(FIDELITY) == 6
    assert all(not shot(number)[0].look.extras for number in range(500))
    assert all(subject.look.extras for subject in SUBJECTS.values())


@pytest.mark.parametrize("name", SUBJECTS)
def test_subjects_are_drawn_in_varied_places(name):
    shots = draw_subject(name, 6, seed=1)
    assert [c for _, c in shots] == [c for _, c in draw_subject(name, 6, seed=1)]
    assert len({text for _, text in shots}) == 6
    assert len({image.tobytes() for image, _ in shots}) == 6
    assert SUBJECTS[name].kind in shots[0][1]


def test_subjects_can_be_drawn_large_and_named():
    ((image, text),) = draw_subject("nova", 1, size=512, token="ohwx")
    assert image.size == (512, 512)
    assert text.startswith("a photo of ohwx woman ")
