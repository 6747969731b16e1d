"""The detector of drawn faces: what it learns from, and what the shipped one finds."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from factory.train.faces import SMALLEST, boxes_of, collage, loss, rated, targets
from tunes_dagster.tiny import FACES, load_faces, weights_dir
from tunes_dagster.tiny.faces import STRIDE, UNIT, DrawnFaces, build, folded
from tunes_dagster.tiny.world import SUBJECTS, draw_shot, draw_subject, face_box, random_shot, shots_of
from tunes_dagster.tiny.world.people import Person


@pytest.fixture(scope="module")
def drawn():
    """Pictures as arrays, and the boxes of their faces."""
    rng = random.Random("faces for tests")
    shots = [random_shot(rng) for _ in range(24)]
    return [np.asarray(draw_shot(shot)) for shot in shots], boxes_of(iter(shots), len(shots))


def test_the_box_is_where_the_face_is_drawn():
    bald = Person("man", "pale", "black", "bald", shirt="blue")
    shot = replace(random_shot(random.Random(3), bald), background="green")
    pictures = [
        np.asarray(draw_shot(replace(shot, look=look)), int) for look in (bald, replace(bald, skin="dark"))
    ]
    changed = np.abs(pictures[0] - pictures[1]).sum(axis=-1) > 60  # skin: head, ears, neck
    left, top, width, height = face_box(shot)
    ys, xs = np.nonzero(changed)
    assert ys.min() == pytest.approx(top, abs=1.5)
    assert (xs.min() + xs.max()) / 2 == pytest.approx(left + width / 2, abs=2.5)
    assert changed[
        int(top + height * 0.75) : int(top + height * 0.9), int(left + width * 0.25)
    ].all()  # the chin
    assert face_box(random_shot(random.Random(1), SUBJECTS["smily"].look)) is None
    large = face_box(shot, 512)
    assert large == pytest.approx([4 * value for value in (left, top, width, height)])


def test_numpy_computes_what_torch_computes():
    import torch

    torch.manual_seed(0)
    net = build()
    for _ in range(2):
        net.train()(torch.randn(4, 3, 64, 64))  # gives the batch norms something to fold
    model = DrawnFaces(folded(net.eval()))
    pixels = torch.randn(3, 64, 96)
    with torch.inference_mode():
        expected = net(pixels[None])[0].numpy()
    assert model.forward(pixels.numpy()) == pytest.approx(expected, abs=1e-5)


def test_collages_know_their_faces(drawn):
    rng = np.random.default_rng(0)

    def pick():
        i = rng.integers(0, len(drawn[0]))
        return drawn[0][i], drawn[1][i]

    seen = []
    for _ in range(30):
        canvas, known, doubtful = collage(rng, pick)
        assert canvas.shape == (128, 128, 3) and canvas.dtype == np.uint8
        wanted = targets(known, doubtful)
        assert (wanted[0] == 1).sum() >= bool(known) and wanted[0].max(initial=0) <= 1
        for x, y, width, height in known:
            assert height >= SMALLEST
            row, column = int((y + height / 2) / STRIDE), int((x + width / 2) / STRIDE)
            if wanted[0, min(row, 15), min(column, 15)] == 1 and len(known) == 1:
                assert np.exp(wanted[4, row, column]) * UNIT == pytest.approx(height, rel=1e-4)
        seen.append(len(known))
    assert 0 in seen and max(seen) > 1


def test_the_loss_is_least_for_the_right_answer(drawn):
    import torch

    wanted = torch.from_numpy(targets([(40.0, 40.0, 36.0, 40.0)], [(90.0, 90.0, 30.0, 30.0)]))[None]
    right = torch.cat([torch.where(wanted[:, :1] == 1, 8.0, -8.0), wanted[:, 1:5]], dim=1)
    wrong = right.clone()
    wrong[:, 4] += 0.3
    moved = right.roll(1, dims=-1)
    doubt = right.clone()
    doubt[:, 0, 13, 13] = 8.0  # where nobody knows
    values = [float(loss(answer, wanted)) for answer in (right, doubt, wrong, moved)]
    assert values[0] == pytest.approx(values[1], abs=1e-6)
    assert values[0] < values[2] < values[3]


def test_the_shipped_detector_finds_drawn_faces_and_nothing_on_things(drawn):
    detector = load_faces()
    rows = [(picture, [tuple(box)] if box[3] else []) for picture, box in zip(*drawn, strict=True)]
    figures = rated(detector, rows)
    assert figures["faces"] >= 12
    assert min(figures["recall"], figures["precision"]) >= 0.9 and figures["height_error"] < 0.06
    mug = [image for image, _ in draw_subject("smily", 4, seed=3)]
    assert sum(len(detector.detect(image)) for image in mug) == 0
    size = sum(file.stat().st_size for file in (weights_dir() / FACES).iterdir())
    assert size <= 150_000


@pytest.mark.parametrize("size", [96, 300, 1024])
def test_faces_are_found_at_every_size_and_several_at_once(size):
    detector = load_faces()
    sheet, boxes = Image.new("RGB", (2 * size, size)), []
    for column, name in enumerate(("nova", "fern")):
        [(image, _)], [shot] = draw_subject(name, 1, seed=5), shots_of(name, 1, seed=5)
        sheet.paste(image.resize((size, size)), (column * size, 0))
        x, y, width, height = face_box(shot, size)
        boxes.append((x + column * size, y, width, height))
    assert rated(detector, [(np.asarray(sheet), boxes)])["recall"] == 1
    assert len(detector.detect(sheet)) == 2
