"""What counts more when the base learns: the weights lie on the faces, telling captions come more often."""

from __future__ import annotations

import numpy as np

from factory.train import emphasis, unet
from tunes_dagster.tiny.world import face_box, shot


def test_weights_lie_on_the_face_and_keep_the_mean(tmp_path):
    cells = emphasis.face_cells(tmp_path, 12)
    people = [i for i in range(12) if face_box(shot(i)[0]) is not None]
    assert 0 < len(people) < 12
    found = emphasis.weights(cells, 16, 16)
    assert np.allclose(found.mean(axis=(1, 2, 3)), 1)
    for i in range(12):
        if i not in people:
            assert (found[i] == 1).all()
            continue
        left, top, width, height = face_box(shot(i)[0])
        middle = found[i, 0, int(top + height / 2) // 8, int(left + width / 2) // 8]
        assert middle == found[i].max() and np.isclose(middle / found[i].min(), emphasis.FACE)


def test_half_of_the_captions_are_the_longest():
    tokens = np.full((400, 3, 8), 9)
    tokens[:, 0, :3] = tokens[:, 1, :6] = tokens[:, 2, :2] = 1
    taken = emphasis.telling(tokens, np.random.default_rng(0))
    lengths = (taken != 9).sum(axis=1)
    assert set(lengths) == {2, 3, 6} and 0.55 < (lengths == 6).mean() < 0.78


def test_a_batch_is_cut_with_its_weights():
    latents = np.zeros((2, 8, 16, 16), dtype=np.float16)
    tokens = np.ones((2, 4, 77), dtype=np.int16)
    cells = np.array([[0, 16, 0, 4], [0, 16, 0, 4]], dtype=np.uint8)
    shapes = set()
    for seed in range(60):
        sample = unet.draw_batch(latents, tokens, np.random.default_rng(seed), 2, cells)
        height, width = sample["x"].shape[2:]
        assert sample["weight"].shape == (2, 1, height, width)
        heavy = (sample["weight"][0, 0, 0] > 1).sum()
        assert heavy == (2 if width == 12 else 4)
        shapes.add((height, width))
    assert len(shapes) == 3
